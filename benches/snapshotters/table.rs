//! The results, in columns.

use crate::world::Snapshotter;
use std::time::Duration;

#[derive(Clone, Copy)]
pub(crate) enum Value {
    Time(Duration),
    Bytes(u64),
}

pub(crate) struct Table {
    columns: Vec<Snapshotter>,
    /// In the order in which they were first measured.
    rows: Vec<(&'static str, Vec<Vec<Value>>)>,
}

impl Table {
    pub(crate) fn new(columns: &[Snapshotter]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: &'static str, column: Snapshotter, value: Value) {
        let column = self
            .columns
            .iter()
            .position(|name| *name == column)
            .unwrap();
        let index = self.rows.iter().position(|(name, _)| *name == row);
        let index = index.unwrap_or_else(|| {
            self.rows.push((row, vec![Vec::new(); self.columns.len()]));
            self.rows.len() - 1
        });
        eprintln!("  {row}: {}", shown(&[value]));
        self.rows[index].1[column].push(value);
    }

    pub(crate) fn print(&self) {
        let names: Vec<_> = self.columns.iter().map(|name| name.word()).collect();
        println!("| what | {} |", names.join(" | "));
        println!("|---|{}", "---|".repeat(names.len()));
        for (row, cells) in &self.rows {
            let cells: Vec<_> = cells.iter().map(|values| shown(values)).collect();
            println!("| {row} | {} |", cells.join(" | "));
        }
    }
}

/// Returns the median.
fn shown(values: &[Value]) -> String {
    let mut values = values.to_vec();
    values.sort_by_key(|value| match value {
        Value::Time(time) => u64::try_from(time.as_nanos()).unwrap(),
        Value::Bytes(bytes) => *bytes,
    });
    match values.get(values.len() / 2) {
        None => "-".to_owned(),
        Some(Value::Bytes(bytes)) => format!("{} KiB", bytes.div_ceil(1024)),
        Some(Value::Time(time)) if time.as_secs_f64() < 1e-3 => {
            format!("{:.0} µs", time.as_secs_f64() * 1e6)
        }
        Some(Value::Time(time)) if time.as_secs_f64() < 1.0 => {
            format!("{:.1} ms", time.as_secs_f64() * 1e3)
        }
        Some(Value::Time(time)) => format!("{:.2} s", time.as_secs_f64()),
    }
}
