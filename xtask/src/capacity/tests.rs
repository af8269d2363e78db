use std::path::Path;

use super::coefficients::Coefficient;
use super::*;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The numbers of a text, without the commas of thousands.
fn numbers(text: &str) -> Vec<f64> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','))
        .filter_map(|word| word.trim_matches([',', '.']).replace(',', "").parse().ok())
        .collect()
}

fn cells(line: &str) -> Vec<&str> {
    let line = line.trim().trim_matches('|');
    line.split('|').map(str::trim).collect()
}

/// The row of `performance.md` that begins with these cells.
fn row<'a>(text: &'a str, first: &[&str]) -> Vec<&'a str> {
    let mut rows = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(cells)
        .filter(|cells| cells.starts_with(first));
    let row = rows.next();
    assert!(rows.next().is_none(), "{first:?} stands there twice");
    row.unwrap_or_else(|| panic!("docs/performance.md has no row {first:?}"))
}

/// Microseconds of the number at `place` in each cell; the unit stands at the end of a cell.
fn many(cells: &[&str], place: usize) -> Vec<f64> {
    let in_us = |cell: &str| match cell.ends_with("ms") {
        true => 1000.0,
        false => 1.0,
    };
    cells[1..]
        .iter()
        .map(|cell| numbers(cell)[place] * in_us(cell))
        .collect()
}

/// What the page says of a coefficient; `None` where no page gives its error.
fn measured(coefficient: &Coefficient) -> Option<Span> {
    let figures = page("docs/performance.md");
    let (low, middle, high) = match coefficient.source {
        Source::Figure(group, figure) => {
            let found = numbers(row(&figures, &[group, figure])[2]);
            match found[..] {
                [middle] => (middle, middle, middle),
                [middle, low, high] => (low, middle, high),
                _ => panic!("{group}, {figure}: {found:?}"),
            }
        }
        Source::Ratio(group, figure) => match numbers(row(&figures, &[group, figure])[4])[..] {
            [middle, low, high] => (low, middle, high),
            ref found => panic!("{group}, {figure}: {found:?}"),
        },
        Source::ManyGateways(name, place) => {
            let all = many(&row(&figures, &[name]), place);
            let low = all.iter().copied().fold(f64::INFINITY, f64::min);
            let high = all.iter().copied().fold(0.0, f64::max);
            (low, *all.last().unwrap(), high)
        }
        Source::EachGateway(name, place) => {
            let counts = numbers(&row(&figures, &["figure", "2"])[1..].join(" "));
            let all = many(&row(&figures, &[name]), place);
            let slope =
                |from: usize, to: usize| (all[to] - all[from]) / (counts[to] - counts[from]);
            let (last, steps) = (all.len() - 1, [slope(0, 1), slope(1, 2)]);
            (
                steps[0].min(steps[1]),
                slope(0, last),
                steps[0].max(steps[1]),
            )
        }
        Source::Sentence(name, sentence) => {
            assert!(page(name).contains(sentence), "{name}: {sentence:?}");
            return None;
        }
        Source::Counted(_) => return None,
    };
    Some(Span { low, middle, high })
}

#[test]
fn each_coefficient_is_what_its_line_of_the_figures_says() {
    let mut wrong = Vec::new();
    for coefficient in ALL {
        let Some(measured) = measured(&coefficient) else {
            continue;
        };
        let value = coefficient.value;
        let is_near = |a: f64, b: f64| (a - b).abs() <= 0.01 * b;
        if !(is_near(value.low, measured.low)
            && is_near(value.middle, measured.middle)
            && is_near(value.high, measured.high))
        {
            wrong.push(format!(
                "{}: {value:?}, measured {measured:?}",
                coefficient.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_shows_the_tables_that_the_command_prints() {
    let text = page("docs/scaling.md");
    for (option, table) in [
        ("--coefficients", coefficient_table()),
        ("--example", table(&model::needs(&Load::example()))),
    ] {
        assert!(
            text.contains(&table),
            "docs/scaling.md does not have what `cargo xtask capacity {option}` prints:\n{table}"
        );
    }
}

fn arguments(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The flags that the page gives for its example are the example.
#[test]
fn the_flags_of_the_page_make_its_example() {
    let text = page("docs/scaling.md");
    let flags = text
        .split("cargo xtask capacity --connections")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the page shows a command");
    let flags = format!("--connections {}", flags.replace('\\', " "));
    let mut load = parse(&arguments(&flags)).unwrap();
    let example = Load::example();
    assert!((load.broadcasts - example.broadcasts).abs() < 1e-4);
    load.broadcasts = example.broadcasts;
    assert_eq!(load, example);
}

fn amount(flags: &str, of: &str, what: &str) -> Span {
    let needs = model::needs(&parse(&arguments(flags)).unwrap());
    needs
        .iter()
        .find(|need| need.of == of && need.what == what)
        .unwrap_or_else(|| panic!("{flags}: no {of}, {what}"))
        .amount
}

#[test]
fn sums_are_those_of_the_coefficients() {
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} {b}");
    let rest = amount(
        "--connections 1000 --instances 2",
        "gateways",
        "at rest, with pings",
    );
    near(rest.middle, (1000.0 * 0.6 + 2.0 * 676.0) * 1e-6);
    let memory = amount(
        "--connections 1000 --instances 2 --encrypted",
        "gateways",
        "memory",
    );
    near(
        memory.middle,
        1000.0 * (2.19 + 4.8) * 1024.0 + 2.0 * 63.0 * 1024.0 * 1024.0,
    );
    let unicast = amount("--unicast 1000", "gateways", "messages to one user");
    near(unicast.middle, 0.075);
    let redis = amount(
        "--instances 4 --unicast 1000 --broadcasts 10",
        "Redis",
        "cores, of which one server uses one",
    );
    near(
        redis.middle,
        (4.0 * 200.0 + 1000.0 * 22.0 + 10.0 * (24.0 + 2.0 * 7.0)) * 1e-6,
    );
    let space = amount(
        "--records 1 --keep-days 1 --bytes 100",
        "PostgreSQL",
        "space on disk",
    );
    near(space.middle, 86_400.0 * (128.0 + 470.0 + 100.0));
}

/// More of anything never needs less of anything, and low is never above high.
#[test]
fn more_load_needs_more() {
    let base = "--unicast 100 --rooms 10 --broadcasts 1 --records 100 --audiences 1 --client-events 100 --arrivals 10";
    let before = model::needs(&parse(&arguments(base)).unwrap());
    for more in [
        "--connections 1100000 --instances 32",
        "--encrypted",
        "--tls",
        "--bytes 2000",
        "--unicast 200",
        "--rooms 20",
        "--room-members 100",
        "--broadcasts 2",
        "--records 30000",
        "--audiences 2",
        "--audience 2000",
        "--client-events 200",
        "--arrivals 20",
        "--keep-days 100",
    ] {
        let after = model::needs(&parse(&arguments(&format!("{base} {more}"))).unwrap());
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            let Span { low, middle, high } = after.amount;
            assert!(low <= middle && middle <= high, "{more}: {after:?}");
            assert!(
                middle >= before.amount.middle * 0.999_999,
                "{more}: {before:?} {after:?}"
            );
        }
    }
}

#[test]
fn flags_that_mean_nothing_are_refused() {
    for wrong in [
        "--connections",
        "--connections -1",
        "--connections many",
        "--instances 0",
        "--instances 1.5",
        "--connections 0",
        "--audience 2000000",
        "--utilization 0",
        "--sockets 5",
    ] {
        assert!(parse(&arguments(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn figures_are_shown_in_the_unit_of_their_size() {
    use model::Unit;
    for (value, unit, text) in [
        (0.0, Unit::Cores, "0 cores"),
        (1.234, Unit::Cores, "1.23 cores"),
        (12.34, Unit::Cores, "12.3 cores"),
        (1_500_000.0, Unit::Rows, "1.50 million"),
        (3.0 * 1024.0 * 1024.0, Unit::Bytes, "3.00 MiB"),
        (1e6, Unit::BytesASecond, "8.00 Mbit/s"),
    ] {
        assert_eq!(shown(value, unit), text);
    }
}
