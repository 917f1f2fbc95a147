//! The table.

use super::measure::{Run, Tool};

const MIB: f64 = (1 << 20) as f64;

/// Rows of figures.
pub struct Table {
    against: bool,
    rows: Vec<String>,
}

type Figure = fn(&Run) -> f64;

const CHECKPOINT: Figure = |run| run.checkpoint.as_secs_f64() * 1e3;
const FROZEN: Figure = |run| run.frozen.as_secs_f64() * 1e3;
const RESTORE: Figure = |run| run.restore.as_secs_f64() * 1e3;
const IMAGE: Figure = |run| run.image as f64 / MIB;
const MEMORY: Figure = |run| run.memory as f64 / MIB;

impl Table {
    pub fn new(against: bool) -> Self {
        Self {
            against,
            rows: Vec::new(),
        }
    }

    /// Adds a workload: a row for each of our own ways.
    pub fn add(&mut self, title: &str, runs: &[(Tool, Vec<Run>)]) {
        let other = runs
            .iter()
            .find(|(tool, _)| tool.is_other)
            .map_or(&[][..], |(_, runs)| runs.as_slice());
        for (tool, own) in runs.iter().filter(|(tool, _)| !tool.is_other) {
            let label = tool.label();
            let mut row = match label.is_empty() {
                true => format!("| {title} |"),
                false => format!("| … {label} |"),
            };
            for figure in [CHECKPOINT, FROZEN, RESTORE, IMAGE, MEMORY] {
                row.push_str(&format!(" {} |", self.cell(figure, own, other)));
            }
            self.rows.push(row);
        }
    }

    fn cell(&self, figure: Figure, own: &[Run], other: &[Run]) -> String {
        let values = |runs: &[Run]| -> Vec<f64> { runs.iter().map(figure).collect() };
        let text = |values: Vec<f64>| median(values).map_or_else(|| "failed".to_owned(), number);
        if !self.against {
            return text(values(own));
        }
        let ratios = own
            .iter()
            .zip(other)
            .map(|(own, other)| figure(own) / figure(other))
            .collect();
        let ratio = median(ratios).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        format!(
            "{} / {} = **{ratio}**",
            text(values(own)),
            text(values(other))
        )
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| workload | checkpoint, ms | frozen, ms | restore, ms | image, MiB | memory after, MiB |\n\
             |---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            text.push_str(row);
            text.push('\n');
        }
        if self.against {
            text.push_str("\nEach: ocimig / other = the median of the ratios of paired runs.\n");
        }
        text
    }
}

fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}
