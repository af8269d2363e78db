//! Which faults come, for how long, and in which order: drawn from a seed, without IO and without time.
//!
//! A deck holds every kind once and is shuffled; when it is used up it is shuffled again. So each kind comes before any comes twice, and the same seed
//! gives the same faults on every machine, however far a slow one gets.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// Gateways that run all the time; a further one joins and leaves.
pub(crate) const MEMBERS: usize = 2;

/// The gateway whose clock can be stepped.
pub(crate) const CLOCKED: usize = 1;

/// What a way through a proxy leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Database,
    Redis,
    Kafka,
}

/// What a proxy does to a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    Cut,
    Stall,
    Slow(Duration),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a start when the fault ends.
    Kill(usize),
    /// SIGSTOP, and SIGCONT when the fault ends.
    Freeze(usize),
    /// SIGTERM, and a start when it has ended.
    Terminate(usize),
    /// The way of one gateway to a service, or of all: all share one way to Kafka.
    Way(Service, Option<usize>, Hindrance),
    /// `default_transaction_read_only` in the whole database server.
    ReadOnly,
    /// Kill -9 of a server, and its restart when the fault ends.
    Down(Service),
    /// A further member joins the group, and leaves it when the fault ends.
    Join,
    /// A clock steps by so many milliseconds, and back when the fault ends.
    Clock(i64),
}

/// One or two faults at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) faults: Vec<Fault>,
    pub(crate) lasts: Duration,
    /// How long the next step waits after this one has ended.
    pub(crate) calm: Duration,
}

/// A kind of fault, before its details are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Kill,
    Freeze,
    Terminate,
    Cut(Service),
    Stall(Service),
    Slow(Service),
    ReadOnly,
    Down(Service),
    Join,
    ClockAhead,
    ClockBack,
}

const DECK: [Card; 19] = [
    Card::Kill,
    Card::Kill,
    Card::Freeze,
    Card::Terminate,
    Card::Cut(Service::Database),
    Card::Cut(Service::Redis),
    Card::Cut(Service::Kafka),
    Card::Stall(Service::Database),
    Card::Stall(Service::Redis),
    Card::Stall(Service::Kafka),
    Card::Slow(Service::Database),
    Card::Slow(Service::Redis),
    Card::ReadOnly,
    Card::Down(Service::Database),
    Card::Down(Service::Redis),
    Card::Down(Service::Kafka),
    Card::Join,
    Card::ClockAhead,
    Card::ClockBack,
];

/// The steps of a seed, without end.
pub(crate) struct Schedule {
    random: StdRng,
    deck: Vec<Card>,
    /// No fault lasts longer than this.
    longest_secs: f64,
    has_clock: bool,
}

impl Schedule {
    /// The steps of `seed`. A short run has shorter faults, so that it sees every kind, and some still last until readiness must name them; without `has_clock` no clock steps.
    pub(crate) fn new(seed: u64, minutes: f64, has_clock: bool) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            deck: Vec::new(),
            longest_secs: (minutes * 1.5).clamp(16.0, 45.0),
            has_clock,
        }
    }

    fn card(&mut self) -> Card {
        loop {
            if self.deck.is_empty() {
                self.deck = DECK.to_vec();
                self.deck.shuffle(&mut self.random);
            }
            let card = self.deck.pop().expect("a full deck");
            if self.has_clock || !matches!(card, Card::ClockAhead | Card::ClockBack) {
                return card;
            }
        }
    }

    fn fault(&mut self, card: Card) -> Fault {
        let gateway = self.random.random_range(0..MEMBERS);
        // Half of the time it is everybody's.
        let whose = self.random.random_bool(0.5).then_some(gateway);
        let slow = Duration::from_millis(self.random.random_range(10..120));
        let clock = self.random.random_range(300..20_000);
        match card {
            Card::Kill => Fault::Kill(gateway),
            Card::Freeze => Fault::Freeze(gateway),
            Card::Terminate => Fault::Terminate(gateway),
            Card::Cut(Service::Kafka) => Fault::Way(Service::Kafka, None, Hindrance::Cut),
            Card::Stall(Service::Kafka) => Fault::Way(Service::Kafka, None, Hindrance::Stall),
            Card::Slow(Service::Kafka) => Fault::Way(Service::Kafka, None, Hindrance::Slow(slow)),
            Card::Cut(service) => Fault::Way(service, whose, Hindrance::Cut),
            Card::Stall(service) => Fault::Way(service, whose, Hindrance::Stall),
            Card::Slow(service) => Fault::Way(service, whose, Hindrance::Slow(slow)),
            Card::ReadOnly => Fault::ReadOnly,
            Card::Down(service) => Fault::Down(service),
            Card::Join => Fault::Join,
            Card::ClockAhead => Fault::Clock(clock),
            Card::ClockBack => Fault::Clock(-clock),
        }
    }

    fn seconds(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.random.random_range(from..to))
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let card = self.card();
        let fault = self.fault(card);
        let mut faults = vec![fault];
        // A gateway that fails while something else is away.
        if !fault.is_of_a_gateway() && self.random.random_bool(0.25) {
            let card = if self.random.random_bool(0.7) {
                Card::Kill
            } else {
                Card::Freeze
            };
            faults.push(self.fault(card));
        }
        let lasts = if self.random.random_bool(0.3) {
            self.seconds(self.longest_secs / 2.0, self.longest_secs)
        } else {
            self.seconds(0.5, 5.0)
        };
        let calm = self.seconds(1.0, 8.0);
        Some(Step {
            faults,
            lasts,
            calm,
        })
    }
}

impl Fault {
    /// The name that totals are counted by.
    pub(crate) fn name(self) -> String {
        let service = |service| match service {
            Service::Database => "PostgreSQL",
            Service::Redis => "Redis",
            Service::Kafka => "Kafka",
        };
        match self {
            Self::Kill(_) => "SIGKILL".into(),
            Self::Freeze(_) => "SIGSTOP".into(),
            Self::Terminate(_) => "SIGTERM".into(),
            Self::Way(to, _, Hindrance::Cut) => format!("{} cut", service(to)),
            Self::Way(to, _, Hindrance::Stall) => format!("{} stalled", service(to)),
            Self::Way(to, _, Hindrance::Slow(_)) => format!("{} slow", service(to)),
            Self::ReadOnly => "PostgreSQL read-only".into(),
            Self::Down(server) => format!("{} restarted", service(server)),
            Self::Join => "member joins".into(),
            Self::Clock(_) => "clock step".into(),
        }
    }

    fn is_of_a_gateway(self) -> bool {
        matches!(
            self,
            Self::Kill(_) | Self::Freeze(_) | Self::Terminate(_) | Self::Join | Self::Clock(_)
        )
    }

    /// Whether this gateway cannot store while it lasts, and is told so at once.
    pub(crate) fn keeps_from_storing(self, gateway: usize) -> bool {
        match self {
            Self::Way(Service::Database, whose, Hindrance::Cut) => {
                whose.is_none_or(|whose| whose == gateway)
            }
            Self::ReadOnly | Self::Down(Service::Database) => true,
            _ => false,
        }
    }

    /// Whether no gateway reaches a broker while it lasts.
    pub(crate) fn keeps_from_reading(self) -> bool {
        matches!(
            self,
            Self::Way(Service::Kafka, _, Hindrance::Cut) | Self::Down(Service::Kafka)
        )
    }

    /// Whether a partition of this gateway may stand still while it lasts.
    pub(crate) fn may_stop_partitions(self, gateway: usize) -> bool {
        match self {
            Self::Way(Service::Database, whose, _) => whose.is_none_or(|whose| whose == gateway),
            Self::Freeze(frozen) => frozen == gateway,
            Self::Way(Service::Kafka, ..)
            | Self::ReadOnly
            | Self::Down(Service::Database | Service::Kafka) => true,
            Self::Way(Service::Redis, ..)
            | Self::Down(Service::Redis)
            | Self::Kill(_)
            | Self::Terminate(_)
            | Self::Join
            | Self::Clock(_) => false,
        }
    }

    /// Whether this gateway receives nothing from Redis while it lasts.
    pub(crate) fn keeps_from_receiving(self, gateway: usize) -> bool {
        match self {
            Self::Way(Service::Redis, whose, Hindrance::Cut | Hindrance::Stall) => {
                whose.is_none_or(|whose| whose == gateway)
            }
            Self::Down(Service::Redis) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        match self {
            Self::Kill(gateway) | Self::Freeze(gateway) | Self::Terminate(gateway) => {
                write!(f, " (gateway {gateway})")
            }
            Self::Way(_, whose, hindrance) => {
                if let Hindrance::Slow(by) = hindrance {
                    write!(f, " by {} ms", by.as_millis())?;
                }
                match whose {
                    Some(gateway) => write!(f, " (gateway {gateway})"),
                    None => f.write_str(" (all)"),
                }
            }
            Self::Clock(by) => write!(f, " by {by} ms (gateway {CLOCKED})"),
            Self::ReadOnly | Self::Down(_) | Self::Join => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_every_time_and_another_seed_gives_others() {
        let steps = |seed| {
            Schedule::new(seed, 5.0, true)
                .take(50)
                .collect::<Vec<Step>>()
        };
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_kind_of_fault_comes_once_before_the_deck_is_shuffled_again() {
        for seed in 0..50 {
            let names: BTreeSet<String> = Schedule::new(seed, 5.0, true)
                .take(DECK.len())
                .map(|step| step.faults[0].name())
                .collect();
            // Two cards are kills, and two are steps of a clock.
            assert_eq!(names.len(), DECK.len() - 2, "seed {seed}: {names:?}");
        }
    }

    #[test]
    fn without_a_clock_that_can_be_stepped_none_is() {
        let mut steps = Schedule::new(1, 60.0, false).take(200);
        assert!(steps.all(|step| !step.faults.iter().any(|f| matches!(f, Fault::Clock(_)))));
    }
}
