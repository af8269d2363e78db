//! The hosts of a database URL.
//!
//! Input: a URL as libpq reads it (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>), which may name several hosts
//! between commas. Output: what any parser of URLs can read.

/// One URL for each of the hosts, in their order. A text that is no URL comes back as it is.
pub fn one_url_per_host(url: &str) -> Vec<String> {
    let Some(at) = url.find("://").map(|at| at + 3) else {
        return vec![url.to_owned()];
    };
    let end = url[at..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |end| at + end);
    let hosts = url[at..end].rfind('@').map_or(at, |user| at + user + 1);
    url[hosts..end]
        .split(',')
        .map(|host| format!("{}{host}{}", &url[..hosts], &url[end..]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_gets_the_login_the_database_and_the_options() {
        assert_eq!(
            one_url_per_host("postgres://u:p,w@one:5001,two,[::1]:5003/d?a=b,c@d"),
            [
                "postgres://u:p,w@one:5001/d?a=b,c@d",
                "postgres://u:p,w@two/d?a=b,c@d",
                "postgres://u:p,w@[::1]:5003/d?a=b,c@d",
            ]
        );
        assert_eq!(one_url_per_host("postgres://one"), ["postgres://one"]);
        assert_eq!(one_url_per_host("one,two"), ["one,two"]);
    }
}
