//! The figures of several runtimes side by side.

use std::fmt::Write as _;

use super::Figure;

/// A column: whose figures they are.
#[derive(Clone, Debug)]
pub struct Column {
    /// the runtime and its network
    pub name: String,
    /// its figures, in the order in which all columns have them
    pub figures: Vec<Figure>,
}

fn cell(value: Option<f64>) -> String {
    match value {
        None => "n/a".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.1}"),
    }
}

/// How many times better the second is than the first.
fn ratio(first: &Figure, second: Option<&Figure>) -> String {
    let (Some(base), Some(value)) = (first.value, second.and_then(|figure| figure.value)) else {
        return "n/a".to_owned();
    };
    let times = if first.more_is_better {
        value / base
    } else {
        base / value
    };
    if times.is_finite() {
        format!("{times:.1}x")
    } else {
        "n/a".to_owned()
    }
}

/// A Markdown table: a row for each figure, a column for each runtime, and for each but the first how many times better
/// it is than the first.
#[must_use]
pub fn markdown(columns: &[Column]) -> String {
    let Some((base, others)) = columns.split_first() else {
        return String::new();
    };
    let mut text = format!("| | unit | {} |", base.name);
    for column in others {
        let _ = write!(text, " {} | better by |", column.name);
    }
    text.push_str("\n|---|---|---|");
    text.push_str(&"---|---|".repeat(others.len()));
    text.push('\n');
    for figure in &base.figures {
        let _ = write!(
            text,
            "| {} | {} | {} |",
            figure.name,
            figure.unit,
            cell(figure.value)
        );
        for column in others {
            let other = column.figures.iter().find(|one| one.name == figure.name);
            let value = cell(other.and_then(|one| one.value));
            let _ = write!(text, " {value} | {} |", ratio(figure, other));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, time: Option<f64>, rate: f64) -> Column {
        let figure = |name: &str, unit, value, more_is_better| Figure {
            name: name.to_owned(),
            unit,
            value,
            more_is_better,
        };
        let figures = vec![
            figure("start", "ms", time, false),
            figure("log", "MiB/s", Some(rate), true),
        ];
        Column {
            name: name.to_owned(),
            figures,
        }
    }

    #[test]
    fn the_ratio_is_how_much_better_it_is() {
        let text = markdown(&[
            column("a", Some(150.0), 30.0),
            column("b", Some(50.0), 300.0),
        ]);
        assert!(
            text.contains("| start | ms | 150 | 50.0 | 3.0x |"),
            "{text}"
        );
        assert!(
            text.contains("| log | MiB/s | 30.0 | 300 | 10.0x |"),
            "{text}"
        );
    }

    #[test]
    fn what_is_missing_is_not_compared() {
        let text = markdown(&[column("a", None, 30.0), column("b", Some(50.0), 300.0)]);
        assert!(text.contains("| start | ms | n/a | 50.0 | n/a |"), "{text}");
    }
}
