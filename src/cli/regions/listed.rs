//! The regions of a file that is a copy of `/proc/PID/maps`: its own lines, under the headings.

use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::proc::classify::{Class, Hints, Kind, Segment, classify};
use crate::proc::maps::{Area, parse_line};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;

/// The lines of a file.
#[derive(Debug)]
pub struct Listed {
    lines: Vec<(Vec<u8>, Area, Class)>,
}

impl Listed {
    /// Reads and classifies a file.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = Vec::new();
        let doing = || format!("reading {}", path.display());
        if path.as_os_str() == "-" {
            std::io::stdin().lock().read_to_end(&mut text)
        } else {
            std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text))
        }
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::coded("E-NO-FILE", Exit::NotFound, "there is no such file", "")
            }
            _ => error.into(),
        })
        .doing(doing)?;
        Self::parse(&text).doing(doing)
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let mut lines = Vec::new();
        let mut areas: Vec<Area> = Vec::new();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii_end();
            if line.is_empty() {
                continue;
            }
            let area = parse_line(line).ok_or_else(|| wrong(number, line, "is none of maps"))?;
            if areas.last().is_some_and(|last| last.end > area.start) {
                return Err(wrong(
                    number,
                    line,
                    "begins below the end of the one before",
                ));
            }
            lines.push(line.to_vec());
            areas.push(area);
        }
        if areas.is_empty() {
            return Err(Error::coded(
                "E-MAPS",
                Exit::Usage,
                "there is no region in it",
                "a kernel thread and a dead process have an empty maps; take that of another",
            ));
        }
        let classes = classify(&areas, &Hints::default());
        Ok(Self {
            lines: lines
                .into_iter()
                .zip(areas)
                .zip(classes)
                .map(|((line, area), class)| (line, area, class))
                .collect(),
        })
    }

    /// Prints it.
    pub fn print(&self, json: bool, out: &mut dyn Write) -> Result<()> {
        if json {
            let segments: Vec<Value> = Segment::ALL.map(|segment| self.json(segment)).into();
            serde_json::to_writer_pretty(&mut *out, &json!({ "segments": segments }))
                .map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        for segment in Segment::ALL {
            super::heading(segment, out)?;
            super::restricted(self.of(segment).map(|(_, area, kind)| (area, kind)), out)?;
            for (line, _, _) in self.of(segment) {
                out.write_all(line)?;
                writeln!(out)?;
            }
        }
        Ok(())
    }

    fn of(&self, segment: Segment) -> impl Iterator<Item = (&[u8], &Area, Kind)> {
        self.lines
            .iter()
            .filter(move |(_, _, class)| class.segment == segment)
            .map(|(line, area, class)| (line.as_slice(), area, class.kind))
    }

    fn json(&self, segment: Segment) -> Value {
        let size: u64 = self.of(segment).map(|(_, area, _)| area.size()).sum();
        let regions: Vec<Value> = self
            .of(segment)
            .map(|(_, area, kind)| super::region_json(area, kind))
            .collect();
        json!({
            "number": segment as u8,
            "heading": segment.heading(),
            "regions": regions,
            "total": { "size": size },
        })
    }
}

fn wrong(number: usize, line: &[u8], why: &str) -> Error {
    const SHOWN: usize = 120;
    let shown = PathBytes::from(&line[..line.len().min(SHOWN)]);
    Error::coded(
        "E-MAPS",
        Exit::Usage,
        format!("line {number} {why}: {shown}"),
        "give a copy of /proc/PID/maps",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const SEED: &str = include_str!("../../proc/classify/samples/bash-centos7.maps");

    fn parse(text: &str) -> Result<Listed> {
        Listed::parse(text.as_bytes())
    }

    fn printed(listed: &Listed, json: bool) -> String {
        let mut out = Vec::new();
        listed.print(json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_seed_has_its_lines_under_its_headings() {
        let wanted = include_str!("seed.txt");
        assert_eq!(printed(&parse(SEED).unwrap(), false), wanted);
    }

    #[test]
    fn every_line_stands_under_one_heading_just_as_it_was() {
        let text = printed(&parse(SEED).unwrap(), false);
        for line in SEED.lines() {
            let count = text.lines().filter(|printed| *printed == line).count();
            assert_eq!(count, 1, "{line}");
        }
    }

    #[test]
    fn json_has_kinds_and_totals() {
        let json: Value = serde_json::from_str(&printed(&parse(SEED).unwrap(), true)).unwrap();
        let segments = json["segments"].as_array().unwrap();
        assert_eq!(segments.len(), 5);
        assert_eq!(segments[0]["heading"], "1. TEXT");
        assert_eq!(segments[0]["total"]["size"], 0xde000);
        assert_eq!(segments[2]["regions"][2]["kind"], "restricted");
        assert_eq!(segments[2]["regions"][2]["path"], "/usr/lib64/libc-2.17.so");
        assert_eq!(segments[3]["regions"].as_array().unwrap().len(), 6);
    }

    fn refused(text: &str) -> Error {
        let error = parse(text).unwrap_err();
        assert_eq!((error.code(), error.exit()), ("E-MAPS", Exit::Usage));
        error
    }

    #[test]
    fn a_line_that_is_none_is_named_by_its_number() {
        let text = format!("{SEED}\nthis is no region\n");
        let error = refused(&text).to_string();
        let number = SEED.lines().count() + 2;
        assert!(error.contains(&format!("line {number} ")), "{error}");
        assert!(error.contains("this is no region"), "{error}");
    }

    #[test]
    fn overlapping_lines_and_empty_files_are_refused() {
        let line = SEED.lines().next().unwrap();
        let error = refused(&format!("{line}\n{line}\n")).to_string();
        assert!(error.contains("line 2 "), "{error}");
        refused("");
        refused("\n\n");
    }

    #[test]
    fn a_file_with_other_line_ends_reads_as_well() {
        let listed = parse(&SEED.replace('\n', "\r\n")).unwrap();
        assert_eq!(printed(&listed, false), include_str!("seed.txt"));
    }
}
