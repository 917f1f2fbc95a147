use super::*;
use crate::image::archive::Output;
use crate::image::header::{Compression, Container, FORMAT, Header, Host};
use std::path::PathBuf;

fn writer(path: &Path) -> Writer {
    let header = Header {
        format: FORMAT,
        engine: "ocimig 0".into(),
        created: 0,
        host: Host::default(),
        container: Container::default(),
        compression: Compression::Zstd,
        memory_only: false,
        requires: Vec::new(),
    };
    Writer::create(Output::File(path.to_owned()), &header).unwrap()
}

/// Pages that are told by one number each.
fn pages(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    numbers
        .into_iter()
        .flat_map(|number| number.to_le_bytes().repeat(PAGE as usize / 4))
        .collect()
}

/// Writes an image of one object; returns how many pages were left out.
fn write(path: &Path, parent: Option<(&Path, &str)>, object: &str, content: &[u8]) -> u64 {
    let reader = parent.map(|(path, _)| Reader::open(path).unwrap());
    let below = reader
        .as_ref()
        .zip(parent)
        .map(|(reader, (_, recorded_as))| (reader, Path::new(recorded_as)));
    let mut increment = Increment::new(below, true).unwrap();
    let mut writer = writer(path);
    for (number, chunk) in content.chunks((CHUNK_PAGES * PAGE) as usize).enumerate() {
        let filled = Filled {
            object,
            number: number as u64,
            bytes: chunk.to_vec(),
            known: &[],
        };
        let stored = increment.take(filled).unwrap();
        writer
            .piece(&format!("memory/{object}"), number as u64, stored)
            .unwrap();
    }
    let skipped = increment.skipped;
    increment.finish(&mut writer).unwrap();
    writer.finish().unwrap();
    skipped
}

fn read(path: &Path, object: &str) -> Result<Vec<u8>> {
    let image = Reader::open(path)?;
    let layers = Layers::new(&image, path.parent().unwrap())?;
    let mut content = Vec::new();
    for number in 0..image.pieces(&format!("memory/{object}")) {
        content.extend(layers.chunk(object, number)?);
    }
    Ok(content)
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[test]
fn a_child_holds_what_changed_and_comes_back_whole() {
    let place = Place::new();
    let (first, second, third) = (place.path("1"), place.path("2"), place.path("3"));
    let before = pages(0..700);
    assert_eq!(write(&first, None, "anonymous", &before), 0);
    // Some are new, some moved, some are there twice.
    let changed = pages((10..300).chain(5000..5003).chain(300..700).chain([5, 5, 0]));
    let skipped = write(&second, Some((&first, "1")), "anonymous", &changed);
    assert_eq!(skipped, 290 + 400 + 3);
    assert!(read(&second, "anonymous").unwrap() == changed);
    // What the grandparent has, the child of the child finds by way of its parent.
    let last = pages((4999..5002).chain(0..20).rev());
    assert_eq!(write(&third, Some((&second, "2")), "other", &last), 2 + 12);
    assert!(read(&third, "other").unwrap() == last);
    assert!(read(&first, "anonymous").unwrap() == before);
}

#[test]
fn everything_and_nothing_can_be_inherited() {
    let place = Place::new();
    let (first, second, third) = (place.path("1"), place.path("2"), place.path("3"));
    let content = pages(0..300);
    write(&first, None, "anonymous", &content);
    assert_eq!(
        write(&second, Some((&first, "1")), "anonymous", &content),
        300
    );
    assert!(read(&second, "anonymous").unwrap() == content);
    let other = pages(1000..1300);
    assert_eq!(write(&third, Some((&first, "1")), "anonymous", &other), 0);
    assert!(read(&third, "anonymous").unwrap() == other);
}

#[test]
fn another_image_in_the_place_of_the_parent_is_refused() {
    let place = Place::new();
    let (first, second) = (place.path("1"), place.path("2"));
    write(&first, None, "anonymous", &pages(0..10));
    write(&second, Some((&first, "1")), "anonymous", &pages(5..15));
    write(&first, None, "anonymous", &pages(1..11));
    assert_eq!(
        read(&second, "anonymous").unwrap_err().code(),
        "E-IMAGE-PARENT"
    );
    std::fs::remove_file(&first).unwrap();
    assert!(read(&second, "anonymous").is_err());
}

#[test]
fn an_image_without_digests_cannot_be_a_parent() {
    let place = Place::new();
    let path = place.path("1");
    writer(&path).finish().unwrap();
    let image = Reader::open(&path).unwrap();
    let error = Increment::new(Some((&image, Path::new("1"))), false)
        .err()
        .unwrap();
    assert_eq!(error.code(), "E-IMAGE-PARENT");
}

#[test]
fn runs_that_make_no_sense_are_refused_and_nothing_panics() {
    let run = |page, pages, source, there| InheritedRun {
        page,
        pages,
        source,
        there,
    };
    for runs in [
        vec![run(0, 0, 0, 0)],
        vec![run(5, 2, 0, 0), run(6, 1, 0, 0)],
        vec![run(u64::MAX, 2, 0, 0)],
        vec![run(0, 2, 0, u64::MAX)],
        vec![run(0, u64::MAX / 2, 0, 0)],
    ] {
        let inherited = Inherited {
            objects: BTreeMap::from([("anonymous".to_owned(), runs)]),
            ..Inherited::default()
        };
        assert!(check(&inherited).is_err());
    }
}

#[test]
fn every_different_page_is_there_once() {
    let mut distinct = Distinct::default();
    let mut chunks = Vec::new();
    let mut sink = |number: u64, bytes: Vec<u8>| {
        assert_eq!(number, chunks.len() as u64);
        chunks.push(bytes);
        Ok(())
    };
    let mut places = Vec::new();
    let mut placed = |number: u64| places.push(number);
    distinct
        .take(&pages(0..200), &mut sink, &mut placed)
        .unwrap();
    distinct
        .take(&pages(100..300), &mut sink, &mut placed)
        .unwrap();
    distinct.finish(&mut sink).unwrap();
    assert!(chunks.concat() == pages(0..300));
    assert!(places.into_iter().eq((0..200).chain(100..300)));
    assert_eq!(chunks.len(), 2);
    let mut count = 0;
    Distinct::default()
        .finish(&mut |_, bytes| {
            count += 1;
            assert!(bytes.is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(count, 1);
}

#[test]
fn pages_that_are_known_are_not_looked_at_and_come_back() {
    let place = Place::new();
    let (first, second, third) = (place.path("1"), place.path("2"), place.path("3"));
    write(&first, None, DISTINCT, &pages(0..400));
    let parent = Reader::open(&first).unwrap();
    let mut increment = Increment::new(Some((&parent, Path::new("1"))), true).unwrap();
    let mut writer = writer(&second);
    // Known at the beginning, in the middle, at the end; in between one new, and one found.
    let chunk = Filled {
        object: "anonymous",
        number: 0,
        bytes: pages([1000, 7]),
        known: &[(0, 10, 300), (11, 5, 0), (17, 3, 390)],
    };
    let stored = increment.take(chunk).unwrap();
    assert_eq!(stored.len() as u64, PAGE);
    writer.piece("memory/anonymous", 0, stored).unwrap();
    assert_eq!((increment.scanned, increment.skipped), (20, 19));
    increment.finish(&mut writer).unwrap();
    writer.finish().unwrap();
    let content = pages(
        (300..310)
            .chain([1000])
            .chain(0..5)
            .chain([7])
            .chain(390..393),
    );
    assert!(read(&second, "anonymous").unwrap() == content);
    // Their digests are there for the next one.
    assert_eq!(
        write(&third, Some((&second, "2")), "anonymous", &content),
        20
    );
    assert!(read(&third, "anonymous").unwrap() == content);
}
