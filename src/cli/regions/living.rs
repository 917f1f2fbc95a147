//! The regions of a living process.

use crate::cli::inspect::human;
use crate::error::Result;
use crate::image::PathBytes;
use crate::proc::classify::Segment;
use crate::proc::read::Process;
use crate::resource::memory::regions::{Fate, Region, look};
use serde_json::{Value, json};
use std::io::Write;

/// A process and its regions.
#[derive(Debug)]
pub struct Living {
    pid: i32,
    comm: Vec<u8>,
    exe: Vec<u8>,
    regions: Vec<Region>,
}

/// Sums over regions, in bytes.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
struct Total {
    size: u64,
    resident: u64,
    private_dirty: u64,
    stored: u64,
}

impl Total {
    fn of<'a>(regions: impl Iterator<Item = &'a Region>) -> Self {
        regions.fold(Self::default(), |sum, region| Self {
            size: sum.size + region.area.size(),
            resident: sum.resident + region.resident,
            private_dirty: sum.private_dirty + region.private_dirty,
            stored: sum.stored + region.stored,
        })
    }
}

impl Living {
    /// Looks at a process.
    pub fn look(pid: i32) -> Result<Self> {
        let process = Process::new(pid);
        let regions = look(pid)?;
        Ok(Self {
            pid,
            comm: process.comm().unwrap_or_default(),
            exe: process.link("exe").unwrap_or_default(),
            regions,
        })
    }

    fn of(&self, segment: Segment) -> impl Iterator<Item = &Region> {
        self.regions
            .iter()
            .filter(move |region| region.class.segment == segment)
    }

    /// Prints it.
    pub fn print(&self, json: bool, out: &mut dyn Write) -> Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, &self.json()).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        for segment in Segment::ALL {
            super::heading(segment, out)?;
            super::restricted(
                self.of(segment)
                    .map(|region| (&region.area, region.class.kind)),
                out,
            )?;
            row(
                ["kind", "size", "resident", "dirty", "stored"],
                "region",
                out,
            )?;
            for region in self.of(segment) {
                let stored = match region.fate {
                    Fate::Stored => human(region.stored),
                    other => other.name().to_owned(),
                };
                row(
                    [
                        region.class.kind.name(),
                        &human(region.area.size()),
                        &human(region.resident),
                        &human(region.private_dirty),
                        &stored,
                    ],
                    &region.area.to_string(),
                    out,
                )?;
            }
            total("total", Total::of(self.of(segment)), "", out)?;
        }
        writeln!(out)?;
        let whole = Total::of(self.regions.iter());
        let what = format!("{} ({})", PathBytes::from(&self.exe), self.pid);
        total("process", whole, &what, out)?;
        for region in &self.regions {
            if let Fate::Refused(code, reason) = region.fate {
                let (start, end) = (region.area.start, region.area.end);
                writeln!(out, "refused: {code}: {start:x}-{end:x}: {reason}")?;
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let segment = |segment: Segment| {
            let regions: Vec<Value> = self.of(segment).map(region).collect();
            json!({
                "number": segment as u8,
                "heading": segment.heading(),
                "regions": regions,
                "total": Total::of(self.of(segment)),
            })
        };
        json!({
            "pid": self.pid,
            "comm": PathBytes::from(&self.comm),
            "exe": PathBytes::from(&self.exe),
            "segments": Segment::ALL.map(segment),
            "total": Total::of(self.regions.iter()),
        })
    }
}

fn region(region: &Region) -> Value {
    let mut value = super::region_json(&region.area, region.class.kind);
    value["resident"] = region.resident.into();
    value["private_dirty"] = region.private_dirty.into();
    value["stored"] = region.stored.into();
    value["checkpoint"] = region.fate.name().into();
    if let Fate::Refused(code, reason) = region.fate {
        value["refusal"] = json!({ "code": code, "reason": reason });
    }
    value
}

fn total(name: &str, total: Total, what: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let [size, resident, dirty, stored] = [
        total.size,
        total.resident,
        total.private_dirty,
        total.stored,
    ]
    .map(human);
    row([name, &size, &resident, &dirty, &stored], what, out)
}

fn row(columns: [&str; 5], last: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let [kind, size, resident, dirty, stored] = columns;
    let line = format!("{kind:14} {size:>10} {resident:>10} {dirty:>10} {stored:>10}  {last}");
    writeln!(out, "{}", line.trim_end())
}
