use super::*;
use crate::config::Config;

fn reader(bare_domain_kind: &str) -> Reader {
    let mut policy = Config::for_tests().policy;
    policy.bare_domain_kind = bare_domain_kind.into();
    Reader::new(&policy)
}

/// A row in one line: variant, subject, target, action, effect, domain; `-` is NULL and `''` an empty text. Permission 1 has the code `Order`.
fn read_with(reader: &Reader, line: &str) -> Reading {
    let mut words = line.split_ascii_whitespace().map(|word| match word {
        "-" => None,
        "''" => Some(""),
        word => Some(word),
    });
    let mut next = || words.next().flatten();
    let (variant, subject_type, subject_id) = (next(), next(), next());
    let (target_type, target_id) = (next(), next());
    let about_permission = matches!(target_type, Some("Permission" | "") | None);
    reader.read(&Written {
        variant,
        subject_type,
        subject_id,
        target_type,
        target_id,
        action: next(),
        effect: next(),
        domain: next(),
        code: (about_permission && target_id == Some("1")).then_some("Order"),
    })
}

fn read(line: &str) -> Reading {
    read_with(&reader(""), line)
}

/// The reading in one line.
fn show(reading: Reading) -> String {
    let domain = |domain: Option<String>| domain.unwrap_or_else(|| "everywhere".into());
    let policy = |row: PolicyRow| {
        let target = match row.target {
            Target::Code(code) => code,
            Target::Resource(code) => format!("{code} and below"),
        };
        format!(
            "{} {} {target} {} in {}",
            row.subject,
            if row.allow { "may" } else { "may not" },
            row.action.unwrap_or_else(|| "anything".into()),
            domain(row.domain)
        )
    };
    match reading {
        Reading::Policy(row) => policy(row),
        Reading::Role { role, joins } => format!(
            "{} has {} in {}{}",
            role.subject,
            role.role,
            domain(role.domain),
            if joins { " and joins it" } else { "" }
        ),
        Reading::Member(domain) => format!("joins {domain}"),
        Reading::Elsewhere => "elsewhere".into(),
        Reading::Unread { why, denies } => {
            let denies = match denies {
                None => "nothing".to_owned(),
                Some(Denied::Permission(row)) => policy(row),
                Some(Denied::Role(role)) => role,
                Some(Denied::Domain(domain)) => domain,
            };
            format!("{}: denies {denies}", why.as_str())
        }
    }
}

fn check(rows: &[(&str, &str)]) {
    for (line, wanted) in rows {
        assert_eq!(show(read(line)), *wanted, "{line}");
    }
}

/// authorization.md 4.2 and 4.4.
#[test]
fn a_policy_row_is_about_a_permission_and_has_an_effect() {
    check(&[
        (
            "policy User 17 Permission 1 read - -",
            "User_17 may Order read in everywhere",
        ),
        (
            "policy Role 3 Permission 1 read allow Merchant_42",
            "Role_3 may Order read in Merchant_42",
        ),
        (
            "policy Staff 17 Permission 1 read deny -",
            "Staff_17 may not Order read in everywhere",
        ),
        (
            "policy User 17 Permission 1 read '' ''",
            "User_17 may Order read in everywhere",
        ),
        (
            "policy User 17 Permission 1 read allow *",
            "User_17 may Order read in everywhere",
        ),
        // The same id, but of a menu: nobody granted the permission.
        ("policy User 17 Menu 1 read - -", "elsewhere"),
        ("policy User 17 permission 1 read - -", "elsewhere"),
        ("policy User 17 Menu 1 read deny -", "elsewhere"),
        ("policy User 17 Permission 1 - - -", "elsewhere"),
        ("policy User 17 Permission 1 '' deny -", "elsewhere"),
        (
            "policy User 17 Permission 1 read Allow -",
            "effect: denies nothing",
        ),
        (
            "policy User 17 Permission 1 read DENY -",
            "effect: denies nothing",
        ),
        (
            "policy User 17 Permission 1 read abstain -",
            "effect: denies nothing",
        ),
        (
            "policy User 17 Permission 9 read - -",
            "permission: denies nothing",
        ),
        (
            "policy User 17 Permission - read deny -",
            "target: denies nothing",
        ),
        (
            "policy - 17 Permission 1 read deny -",
            "subject: denies nothing",
        ),
        (
            "policy User - Permission 1 read - -",
            "subject: denies nothing",
        ),
    ]);
}

/// authorization.md 4.3, 4.11 and 6.1.
#[test]
fn a_group_row_names_a_role_or_a_domain() {
    check(&[
        (
            "group User 17 Role 3 - - -",
            "User_17 has Role_3 in everywhere",
        ),
        (
            "group Staff 17 Role 3 - - Merchant_42",
            "Staff_17 has Role_3 in Merchant_42 and joins it",
        ),
        (
            "group User 17 Role 3 - allow Branch_42",
            "User_17 has Role_3 in Branch_42 and joins it",
        ),
        ("group User 17 Merchant 42 - - -", "joins Merchant_42"),
        (
            "group User 17 Organizer 7 - - Organizer_7",
            "joins Organizer_7",
        ),
        (
            "group User 17 Merchant 42 - - Organizer_7",
            "domain: denies nothing",
        ),
        ("group User 17 Menu 3 - - Merchant_42", "elsewhere"),
        ("group User 17 role 3 - - -", "elsewhere"),
        ("group User 17 - 3 - - -", "target: denies nothing"),
        ("group Role 4 Role 3 - - -", "subject: denies nothing"),
        ("group User 17 Role 3 - deny -", "effect: denies Role_3"),
        (
            "group User 17 Merchant 42 - deny -",
            "effect: denies Merchant_42",
        ),
    ]);
}

/// authorization.md 4.5.
#[test]
fn a_domain_without_a_kind_has_the_kind_of_the_setting() {
    let policy = "policy User 17 Permission 1 read - 42";
    let group = "group User 17 Role 3 - - 42";
    check(&[
        (policy, "domain: denies nothing"),
        (group, "domain: denies nothing"),
        (
            "policy User 17 Permission 1 read deny 42",
            "domain: denies User_17 may not Order and below anything in everywhere",
        ),
        (
            "policy User 17 Permission 1 read - ANY_MEMBER",
            "domain: denies nothing",
        ),
        (
            "group User 17 Role 3 - - SYSTEM_WIDE",
            "domain: denies nothing",
        ),
    ]);
    let reader = reader("Merchant");
    assert_eq!(
        show(read_with(&reader, policy)),
        "User_17 may Order read in Merchant_42"
    );
    assert_eq!(
        show(read_with(&reader, group)),
        "User_17 has Role_3 in Merchant_42 and joins it"
    );
    let (merchant, organizer) = (
        Domain::Merchant("42".into()),
        Domain::Organizer("42".into()),
    );
    assert_eq!(
        (reader.bare(&merchant), reader.bare(&organizer)),
        (Some("42"), None)
    );
    // `4_2` without a kind would be read as a domain of kind 4, so it is not asked for either.
    assert_eq!(reader.bare(&Domain::Merchant("4_2".into())), None);
    assert_eq!(
        reader.domain_of("Merchant_4_2"),
        Some(Domain::Merchant("4_2".into()))
    );
}

/// authorization.md 4.10 and 4.11.
#[test]
fn newer_variants_are_read_too() {
    check(&[
        (
            "grant Role 3 Permission 1 read allow SYSTEM_WIDE",
            "Role_3 may Order and below read in everywhere",
        ),
        (
            "grant Role 3 Permission 1 read - ANY_MEMBER",
            "Role_3 may Order and below read in ANY_MEMBER",
        ),
        (
            "grant Role 3 Permission 1 read - -",
            "Role_3 may Order and below read in ANY_MEMBER",
        ),
        (
            "grant User 17 Permission 1 read deny Merchant_42",
            "User_17 may not Order and below read in Merchant_42",
        ),
        ("grant User 17 Menu 1 read - SYSTEM_WIDE", "elsewhere"),
        (
            "grant User 17 Permission 1 custom allow SYSTEM_WIDE",
            "custom: denies nothing",
        ),
        (
            "grant User 17 Permission 1 custom deny Merchant_42",
            "custom: denies User_17 may not Order and below anything in everywhere",
        ),
        (
            "assign_role User 17 Role 3 - - -",
            "User_17 has Role_3 in everywhere",
        ),
        (
            "assign_role User 17 Role 3 - - SYSTEM_WIDE",
            "User_17 has Role_3 in everywhere",
        ),
        (
            "assign_role User 17 Role 3 - - Merchant_42",
            "User_17 has Role_3 in Merchant_42",
        ),
        (
            "assign_role User 17 Role 3 - - ANY_MEMBER",
            "domain: denies nothing",
        ),
        (
            "assign_role User 17 Merchant 42 - - -",
            "target: denies nothing",
        ),
        ("join_domain User 17 Merchant 42 - - -", "joins Merchant_42"),
        ("join_domain User 17 Branch 1 - - -", "elsewhere"),
        ("join_domain User 17 Role 3 - - -", "target: denies nothing"),
        (
            "role_inherits Role 3 Role 9 - - -",
            "Role_3 has Role_9 in everywhere",
        ),
        (
            "role_inherits User 17 Role 9 - - -",
            "subject: denies nothing",
        ),
        (
            "resource_inherits Permission 1 Permission 2 - - -",
            "elsewhere",
        ),
        (
            "resource_inherits Menu 1 Permission 2 - - -",
            "subject: denies nothing",
        ),
        (
            "action_inherits Action read Action manage - - -",
            "elsewhere",
        ),
        (
            "action_inherits Action read Permission manage - - -",
            "target: denies nothing",
        ),
        ("domain_inherits Merchant 1 Organizer 9 - - -", "elsewhere"),
    ]);
}

/// authorization.md 4.12.
#[test]
fn a_row_that_is_not_understood_grants_nothing_and_denies_its_target() {
    check(&[
        (
            "delegate User 17 Permission 1 read allow -",
            "variant: denies nothing",
        ),
        (
            "delegate User 17 Permission 1 read deny -",
            "variant: denies User_17 may not Order and below anything in everywhere",
        ),
        ("delegate User 17 Role 3 - deny -", "variant: denies Role_3"),
        (
            "delegate User 17 Merchant 42 - deny -",
            "variant: denies Merchant_42",
        ),
        (
            "delegate User 17 Menu 1 - deny -",
            "variant: denies nothing",
        ),
        (
            "Policy User 17 Permission 1 read allow -",
            "variant: denies nothing",
        ),
        (
            "- User 17 Permission 1 read deny -",
            "variant: denies User_17 may not Order and below anything in everywhere",
        ),
        (
            "policy User 17 '' 1 read deny -",
            "target: denies User_17 may not Order and below anything in everywhere",
        ),
        ("policy User 17 - 1 read allow -", "target: denies nothing"),
    ]);
}

#[test]
fn kinds_have_the_words_of_the_settings() {
    let mut policy = Config::for_tests().policy;
    policy.kinds.merchant = "Shop".into();
    policy.kinds.role = "Group".into();
    let reader = Reader::new(&policy);
    assert_eq!(
        show(read_with(&reader, "group User 17 Group 3 - - Shop_42")),
        "User_17 has Group_3 in Shop_42 and joins it"
    );
    assert_eq!(
        show(read_with(&reader, "group User 17 Role 3 - - Shop_42")),
        "elsewhere"
    );
    assert_eq!(reader.name(&Domain::Merchant("42".into())), "Shop_42");
    assert_eq!(
        reader.domain_of("Shop_42"),
        Some(Domain::Merchant("42".into()))
    );
    assert_eq!(reader.domain_of("Merchant_42"), None);
}
