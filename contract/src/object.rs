//! JSON objects that are objects: the one way in which every document from outside is read into a derived struct.
//!
//! A derived `Deserialize` also accepts a list and takes its members as the fields in their order, so that `["17", true]` would read as a document that
//! nobody wrote. Read through [`Object`], or through the functions below where a struct lies in a field of another, a list is an error.
//!
//! A member that appears twice is an error too where the struct has that member, and is ignored like every unknown one where it has not.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` that is written as an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

/// Reads a field that is an object, for `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is not an object, or not one that `T` accepts.
pub fn object<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// Reads a field that is an object or null.
///
/// # Errors
/// As [`object`].
pub fn optional_object<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(value)| value))
}

/// Reads a field that is a list of objects.
///
/// # Errors
/// As [`object`], for each member.
pub fn objects<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let read = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|Object(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Inner {
        a: i64,
        b: i64,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Outer<'t> {
        #[serde(borrow)]
        name: &'t str,
        #[serde(deserialize_with = "object")]
        one: Inner,
        #[serde(default, deserialize_with = "optional_object")]
        maybe: Option<Inner>,
        #[serde(default, deserialize_with = "objects")]
        many: Vec<Inner>,
    }

    fn read(text: &str) -> Result<Outer<'_>, serde_json::Error> {
        serde_json::from_str::<Object<Outer<'_>>>(text).map(|Object(outer)| outer)
    }

    #[test]
    fn objects_are_read_and_borrow_their_text() {
        let outer = read(
            r#"{"name":"n","one":{"a":1,"b":2},"maybe":null,"many":[{"a":3,"b":4}],"new":[1]}"#,
        );
        assert_eq!(
            outer.unwrap(),
            Outer {
                name: "n",
                one: Inner { a: 1, b: 2 },
                maybe: None,
                many: vec![Inner { a: 3, b: 4 }],
            }
        );
    }

    #[test]
    fn a_list_is_no_object_at_any_depth() {
        for list in [
            r#"["n",{"a":1,"b":2},null,[]]"#,
            r#"{"name":"n","one":[1,2]}"#,
            r#"{"name":"n","one":{"a":1,"b":2},"maybe":[1,2]}"#,
            r#"{"name":"n","one":{"a":1,"b":2},"many":[[1,2]]}"#,
            r#"null"#,
            r#""n""#,
        ] {
            assert!(read(list).unwrap_err().is_data(), "{list}");
        }
    }

    #[test]
    fn a_member_that_appears_twice_is_an_error() {
        let error = read(r#"{"name":"n","name":"m","one":{"a":1,"b":2}}"#).unwrap_err();
        assert!(error.to_string().contains("duplicate field"), "{error}");
        let error = read(r#"{"name":"n","one":{"a":1,"a":1,"b":2}}"#).unwrap_err();
        assert!(error.to_string().contains("duplicate field"), "{error}");
    }
}
