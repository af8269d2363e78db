//! Runs the gateway's entry points for fuzzing over a corpus and what mutation makes of it, on any toolchain.
//!
//! Inputs lie in `corpus/ENTRY/`, one per file; an input that makes an entry panic is written to `crashes/ENTRY/` and, once the
//! fault is mended, moved into the corpus. `coverage/` is the same for cargo-fuzz, which needs a nightly toolchain and finds
//! deeper inputs, because it sees which branches an input reaches.

mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
pub use signal_gateway::fuzzing::{ENTRIES, Entry};

pub use mutate::mutate;

/// The longest input that mutation makes, in bytes.
pub const LONGEST: usize = 4096;
/// What a run keeps of its own inputs, at most.
const POPULATION: usize = 512;

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// How many inputs the entry took.
    pub inputs: u64,
    /// The file with the input that made it panic.
    pub crash: Option<PathBuf>,
}

/// The folder of this package.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The inputs of an entry's corpus.
///
/// # Errors
/// When the folder or a file cannot be read, or there is none.
pub fn corpus(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = folder().join("corpus").join(name);
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("no corpus in {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    // The same order on every machine.
    files.sort();
    anyhow::ensure!(!files.is_empty(), "{} is empty", folder.display());
    let read = |file: &PathBuf| {
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
    };
    files.iter().map(read).collect()
}

/// Runs an entry over its corpus, and then for so long over mutations. The same `seed` makes the same inputs.
///
/// # Errors
/// When the corpus cannot be read or a crash cannot be written.
pub fn run(name: &str, entry: Entry, time: Duration, seed: u64) -> Result<Run> {
    let begun = Instant::now();
    let mut population = corpus(name)?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut inputs = 0;
    for input in &population {
        inputs += 1;
        if panics(entry, input) {
            let crash = Some(write_crash(name, input)?);
            return Ok(Run { inputs, crash });
        }
    }
    while begun.elapsed() < time {
        // The clock is read once for some inputs.
        for _ in 0..64 {
            let input = mutate(&population, &mut random);
            inputs += 1;
            if panics(entry, &input) {
                let crash = Some(write_crash(name, &input)?);
                return Ok(Run { inputs, crash });
            }
            // A step away from the corpus may be a step towards more; the corpus itself stays.
            if inputs % 8 == 0 {
                keep(&mut population, input, inputs);
            }
        }
    }
    Ok(Run {
        inputs,
        crash: None,
    })
}

fn keep(population: &mut Vec<Vec<u8>>, input: Vec<u8>, count: u64) {
    if population.len() < POPULATION {
        population.push(input);
    } else {
        let second_half = POPULATION / 2;
        population[second_half + count as usize / 8 % second_half] = input;
    }
}

fn panics(entry: Entry, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| entry(input))).is_err()
}

fn write_crash(name: &str, input: &[u8]) -> Result<PathBuf> {
    let folder = folder().join("crashes").join(name);
    std::fs::create_dir_all(&folder)?;
    // FNV-1a: the same input has the same name.
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let file = folder.join(format!("{hash:016x}"));
    std::fs::write(&file, input).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
