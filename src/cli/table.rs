//! Plain tables and amounts for people.

use super::escape;

/// Lines of cells, each column as wide as its widest cell; the last one isn't padded.
pub(super) fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| escape::cell(cell).chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let cell = escape::cell(cell);
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A row from texts.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Bytes in the largest unit of 1024s that leaves a number above one.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (bytes >> (shift - 10)).saturating_mul(10) >> 10;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// The most memory that was seen; a task that ended before the first look has none.
pub(super) fn peak(bytes_seen: u64) -> String {
    if bytes_seen == 0 { "unknown".to_owned() } else { bytes(bytes_seen) }
}

/// A number of things: `1 file`, `2 files`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// CPUs from thousandths.
pub(super) fn cpus(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1_000, millis % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A duration in its two largest units.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        // Tenths of a second would say nothing.
        0 if ms < 100 => format!("{ms} ms"),
        0..=59 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_columns_and_escapes_cells() {
        let rows = [row(["task", "state"]), row(["a\x1b", "running"]), row(["long-name", "x"])];
        assert_eq!(render(&rows), "task       state\na\\x1b      running\nlong-name  x\n");
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn shows_amounts() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(256 << 20), "256.0 MiB");
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
        assert_eq!((cpus(1_500), cpus(2_000), cpus(10)), ("1.5".to_owned(), "2".to_owned(), "0.01".to_owned()));
        assert_eq!((duration(49), duration(3_250)), ("49 ms".to_owned(), "3.2 s".to_owned()));
        assert_eq!((count(1, "file"), count(0, "file")), ("1 file".to_owned(), "0 files".to_owned()));
        assert_eq!((peak(0), peak(1 << 20)), ("unknown".to_owned(), "1.0 MiB".to_owned()));
        assert_eq!(duration(61_000), "1 min 1 s");
        assert_eq!(duration(90_000_000), "1 d 1 h");
    }
}
