//! `/proc/sysvipc/{shm,sem,msg}`: which System V objects there are.

use super::text::{decimal, lines, malformed, words};
use crate::error::Result;
use std::collections::BTreeMap;

/// The numbers of one object by the names of their columns.
pub type Row = BTreeMap<String, i64>;

/// Parses one of these files: names in the first line, numbers in the others.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Row>> {
    let mut lines = lines(text.as_ref());
    let names: Vec<_> = words(lines.next().unwrap_or_default())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    lines
        .map(|line| {
            let numbers: Vec<i64> = words(line)
                .map(decimal)
                .collect::<Option<_>>()
                .filter(|numbers: &Vec<i64>| numbers.len() == names.len())
                .ok_or_else(|| malformed("a line of /proc/sysvipc", line))?;
            Ok(names.iter().cloned().zip(numbers).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_rows_of_numbers() {
        let text = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
            \x20     4660      98305   640                 10000  6787  6787      0     0     0     0     0 1795761380 1795761380 1795761380                  8192                     0\n\
            \x20-1234567          3  1600                     1     0     0      2     0     0     0     0          0          0 1795761380                     0                     0\n";
        let rows = parse(text).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["shmid"], 98305);
        assert_eq!(rows[0]["rss"], 8192);
        assert_eq!(rows[1]["key"], -1_234_567);
        assert_eq!(rows[1]["nattch"], 2);
        assert_eq!(parse("key semid\n").unwrap(), []);
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("key semid\n1\n").unwrap_err().code(), "E-PROC-FORMAT");
        assert_eq!(
            parse("key semid\n1 x\n").unwrap_err().code(),
            "E-PROC-FORMAT"
        );
    }
}
