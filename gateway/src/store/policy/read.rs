//! What one row of the platform's table says (authorization.md 4): the only place where its words are compared.
//!
//! Input: a row as it was written, and `[policy]`. Output: a [`Reading`]. Queries only narrow down which rows come here, so a user's rules, the members of
//! a merchant and the survey of the whole table follow the same clauses. No IO.

use crate::config::{self, PolicyKinds};
use crate::store::{Domain, GroupRow, PolicyRow, Target};

/// The kind of the people whom activities are for.
pub(super) const USER: &str = "User";
/// The variants that make somebody a member: of a role, of a merchant or an organizer.
pub(super) const GROUP: &str = "group";
pub(super) const ASSIGN_ROLE: &str = "assign_role";
pub(super) const JOIN_DOMAIN: &str = "join_domain";
pub(super) const ROLE_INHERITS: &str = "role_inherits";
pub(super) const RESOURCE_INHERITS: &str = "resource_inherits";
pub(super) const ACTION_INHERITS: &str = "action_inherits";
const DOMAIN_INHERITS: &str = "domain_inherits";
const POLICY: &str = "policy";
const GRANT: &str = "grant";
/// What stands for an action in a row of `action_inherits`.
pub(super) const ACTION: &str = "Action";
/// A grant that lists its operations in a column that is not read.
const CUSTOM: &str = "custom";
const ALLOW: &str = "allow";
pub(super) const DENY: &str = "deny";
/// Every domain that the subject has joined.
const ANY_MEMBER: &str = "ANY_MEMBER";
/// Every domain, joined or not.
const SYSTEM_WIDE: &str = "SYSTEM_WIDE";
const EVERY_DOMAIN: &str = "*";

/// A row as it was written; an empty text is as good as none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Written<'r> {
    pub(super) variant: Option<&'r str>,
    pub(super) subject_type: Option<&'r str>,
    pub(super) subject_id: Option<&'r str>,
    pub(super) target_type: Option<&'r str>,
    pub(super) target_id: Option<&'r str>,
    pub(super) action: Option<&'r str>,
    pub(super) effect: Option<&'r str>,
    pub(super) domain: Option<&'r str>,
    /// The code of the permission that the target names, if there is one.
    pub(super) code: Option<&'r str>,
}

/// What a row says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The subject may, or may not, do something.
    Policy(PolicyRow),
    /// The subject is a member of a role, and of the domain if the row `joins` it.
    Role { role: GroupRow, joins: bool },
    /// The subject is a member of a domain.
    Member(String),
    /// It is about something that the gateway is never asked.
    Elsewhere,
    /// It is not understood.
    Unread {
        why: Misread,
        /// What its subject is denied therefore.
        denies: Option<Denied>,
    },
}

/// What a row denies that is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// Everything that a permission covers.
    Permission(PolicyRow),
    /// The membership of a role, by its name in rules.
    Role(String),
    /// The membership of a domain.
    Domain(String),
}

/// Why a row is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Misread {
    /// Its variant is none that is known.
    Variant,
    /// It names no subject, or one that cannot be a subject of this variant.
    Subject,
    /// It names no target, or one that cannot be a target of this variant.
    Target,
    /// No permission has the id that it names, or it was deleted.
    Permission,
    /// Its effect is neither `allow` nor `deny`, or it is a membership that is not allowed.
    Effect,
    /// Its domain has no kind and `policy.bare_domain_kind` is empty, or it is a scope that its variant does not have.
    Domain,
    /// Its action is `custom`, which lists operations in a column that is not read.
    Custom,
}

impl Misread {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Variant,
        Self::Subject,
        Self::Target,
        Self::Permission,
        Self::Effect,
        Self::Domain,
        Self::Custom,
    ];

    /// Returns its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Variant => "variant",
            Self::Subject => "subject",
            Self::Target => "target",
            Self::Permission => "permission",
            Self::Effect => "effect",
            Self::Domain => "domain",
            Self::Custom => "custom",
        }
    }

    /// Returns the reason as part of a sentence.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Variant => "its variant is unknown",
            Self::Subject => "it names no subject that a row of its variant can have",
            Self::Target => "it names no target that a row of its variant can have",
            Self::Permission => "no permission has the id that it names",
            Self::Effect => "its effect is not one that a row of its variant can have",
            Self::Domain => {
                "its domain has no kind, or a scope that a row of its variant cannot have"
            }
            Self::Custom => "its action is custom, whose list of operations is not read",
        }
    }
}

/// Reads rows by the words of the settings.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) kinds: PolicyKinds,
    bare_domain_kind: Option<String>,
}

impl Reader {
    pub(super) fn new(policy: &config::Policy) -> Self {
        Self {
            kinds: policy.kinds.clone(),
            bare_domain_kind: Some(policy.bare_domain_kind.clone()).filter(|kind| !kind.is_empty()),
        }
    }

    /// Returns the text of a domain in rules and rows: `Merchant_42`.
    pub(super) fn name(&self, domain: &Domain) -> String {
        let (kind, id) = match domain {
            Domain::Merchant(id) => (&self.kinds.merchant, id),
            Domain::Organizer(id) => (&self.kinds.organizer, id),
        };
        format!("{kind}_{id}")
    }

    /// Returns the domain that a text names, if it is a merchant or an organizer.
    pub(super) fn domain_of(&self, name: &str) -> Option<Domain> {
        let (kind, id) = name.split_once('_')?;
        if kind == self.kinds.merchant {
            Some(Domain::Merchant(id.to_owned()))
        } else if kind == self.kinds.organizer {
            Some(Domain::Organizer(id.to_owned()))
        } else {
            None
        }
    }

    /// Returns the id of a domain if a row may write it without its kind.
    pub(super) fn bare<'d>(&self, domain: &'d Domain) -> Option<&'d str> {
        let (kind, id) = match domain {
            Domain::Merchant(id) => (&self.kinds.merchant, id),
            Domain::Organizer(id) => (&self.kinds.organizer, id),
        };
        (self.bare_domain_kind.as_ref() == Some(kind) && !id.contains('_')).then_some(id)
    }

    /// Reads a row.
    pub(super) fn read(&self, row: &Written<'_>) -> Reading {
        self.meaning(&row.without_empty())
            .unwrap_or_else(|why| Reading::Unread {
                why,
                denies: self.denied(&row.without_empty()),
            })
    }

    fn meaning(&self, row: &Written<'_>) -> Result<Reading, Misread> {
        let variant = row.variant.ok_or(Misread::Variant)?;
        match variant {
            POLICY | GRANT => self.policy(row, variant == GRANT),
            GROUP | ASSIGN_ROLE | JOIN_DOMAIN | ROLE_INHERITS => self.membership(row, variant),
            RESOURCE_INHERITS => self.structure(row, &self.kinds.permission),
            ACTION_INHERITS => self.structure(row, ACTION),
            // Nothing is asked of a domain within another one: memberships are not inherited.
            DOMAIN_INHERITS => Ok(Reading::Elsewhere),
            _ => Err(Misread::Variant),
        }
    }

    fn policy(&self, row: &Written<'_>, is_grant: bool) -> Result<Reading, Misread> {
        if row.target_type.ok_or(Misread::Target)? != self.kinds.permission {
            return Ok(Reading::Elsewhere);
        }
        let Some(action) = row.action else {
            return Ok(Reading::Elsewhere);
        };
        let subject = row.subject()?;
        row.target_id.ok_or(Misread::Target)?;
        let allow = match row.effect {
            None | Some(ALLOW) => true,
            Some(DENY) => false,
            Some(_) => return Err(Misread::Effect),
        };
        if is_grant && action == CUSTOM {
            return Err(Misread::Custom);
        }
        let code = row.code.ok_or(Misread::Permission)?.to_owned();
        let domain = match row.domain {
            None | Some(ANY_MEMBER) if is_grant => Some(ANY_MEMBER.to_owned()),
            Some(SYSTEM_WIDE) if is_grant => None,
            domain => self.domain(domain)?,
        };
        Ok(Reading::Policy(PolicyRow {
            subject,
            domain,
            target: if is_grant {
                Target::Resource(code)
            } else {
                Target::Code(code)
            },
            action: Some(action.to_owned()),
            allow,
        }))
    }

    fn membership(&self, row: &Written<'_>, variant: &str) -> Result<Reading, Misread> {
        let kinds = &self.kinds;
        let subject = row.subject()?;
        let target_type = row.target_type.ok_or(Misread::Target)?;
        let target_id = row.target_id.ok_or(Misread::Target)?;
        let is_domain = target_type == kinds.merchant || target_type == kinds.organizer;
        let is_role = target_type == kinds.role;
        if row.effect.is_some_and(|effect| effect != ALLOW) {
            return Err(Misread::Effect);
        }
        let of_a_role = row.subject_type == Some(kinds.role.as_str());
        if of_a_role != (variant == ROLE_INHERITS) {
            return Err(Misread::Subject);
        }
        let role = |domain| GroupRow {
            subject,
            role: format!("{}_{target_id}", kinds.role),
            domain,
        };
        let joined = || format!("{target_type}_{target_id}");
        match variant {
            GROUP if is_role => {
                let domain = self.domain(row.domain)?;
                Ok(Reading::Role {
                    joins: domain.is_some(),
                    role: role(domain),
                })
            }
            GROUP if is_domain => match self.domain(row.domain)? {
                Some(domain) if domain != joined() => Err(Misread::Domain),
                _ => Ok(Reading::Member(joined())),
            },
            ASSIGN_ROLE if is_role => {
                let domain = match row.domain {
                    Some(SYSTEM_WIDE) => None,
                    domain => self.domain(domain)?,
                };
                Ok(Reading::Role {
                    role: role(domain),
                    joins: false,
                })
            }
            ROLE_INHERITS if is_role => Ok(Reading::Role {
                role: role(None),
                joins: false,
            }),
            JOIN_DOMAIN if is_domain => Ok(Reading::Member(joined())),
            GROUP | JOIN_DOMAIN if !is_role => Ok(Reading::Elsewhere),
            _ => Err(Misread::Target),
        }
    }

    /// A row that puts one thing below another of the same kind.
    fn structure(&self, row: &Written<'_>, kind: &str) -> Result<Reading, Misread> {
        if row.subject_type != Some(kind) || row.subject_id.is_none() {
            Err(Misread::Subject)
        } else if row.target_type != Some(kind) || row.target_id.is_none() {
            Err(Misread::Target)
        } else if row.effect.is_some_and(|effect| effect != ALLOW) {
            Err(Misread::Effect)
        } else {
            Ok(Reading::Elsewhere)
        }
    }

    /// Returns the domain of a row, `None` for every domain.
    fn domain(&self, written: Option<&str>) -> Result<Option<String>, Misread> {
        match (written, &self.bare_domain_kind) {
            (None | Some(EVERY_DOMAIN), _) => Ok(None),
            (Some(ANY_MEMBER | SYSTEM_WIDE), _) => Err(Misread::Domain),
            (Some(domain), _) if domain.contains('_') => Ok(Some(domain.to_owned())),
            (Some(id), Some(kind)) => Ok(Some(format!("{kind}_{id}"))),
            (Some(_), None) => Err(Misread::Domain),
        }
    }

    /// Returns what the subject of a row that is not understood is denied: its target, wherever and whatever for.
    fn denied(&self, row: &Written<'_>) -> Option<Denied> {
        let kinds = &self.kinds;
        if row.effect != Some(DENY) {
            return None;
        }
        let named = || Some(format!("{}_{}", row.target_type?, row.target_id?));
        match row.target_type {
            Some(kind) if kind == kinds.role => named().map(Denied::Role),
            Some(kind) if kind == kinds.merchant || kind == kinds.organizer => {
                named().map(Denied::Domain)
            }
            Some(kind) if kind != kinds.permission => None,
            _ => Some(Denied::Permission(PolicyRow {
                subject: row.subject().ok()?,
                domain: None,
                target: Target::Resource(row.code?.to_owned()),
                action: None,
                allow: false,
            })),
        }
    }
}

impl<'r> Written<'r> {
    fn without_empty(&self) -> Written<'r> {
        let some = |text: Option<&'r str>| text.filter(|text| !text.is_empty());
        Written {
            variant: some(self.variant),
            subject_type: some(self.subject_type),
            subject_id: some(self.subject_id),
            target_type: some(self.target_type),
            target_id: some(self.target_id),
            action: some(self.action),
            effect: some(self.effect),
            domain: some(self.domain),
            code: some(self.code),
        }
    }

    fn subject(&self) -> Result<String, Misread> {
        match (self.subject_type, self.subject_id) {
            (Some(kind), Some(id)) => Ok(format!("{kind}_{id}")),
            _ => Err(Misread::Subject),
        }
    }
}

#[cfg(test)]
mod tests;
