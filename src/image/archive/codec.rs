//! How pieces are compressed.

use super::name::Coding;
use super::{PIECE, error};
use crate::error::{Context, Error, Result};
use crate::image::header::Compression;

/// Bytes at the beginning of a piece that are tried first.
const SAMPLE: usize = 32 << 10;
/// Fast, and on the memory of real programs within a few percent of the default.
const ZSTD_LEVEL: i32 = 1;

/// A stored piece has at most so many bytes.
pub const LARGEST_STORED: u64 = PIECE as u64;

/// Compresses a piece, or leaves it as it is where that saves less than a tenth.
pub fn encode(bytes: Vec<u8>, compression: Compression) -> Result<(Coding, Vec<u8>)> {
    let coding = match compression {
        Compression::Zstd => Coding::Zstd,
        Compression::Lz4 => Coding::Lz4,
        Compression::Gzip | Compression::None => return Ok((Coding::Raw, bytes)),
    };
    let saves = |stored: usize, plain: usize| stored < plain - plain / 10;
    if bytes.len() > 4 * SAMPLE {
        // From the middle: beginnings of objects are often unlike the rest.
        let middle = bytes.len() / 2;
        let sample = &bytes[middle..middle + SAMPLE];
        if !saves(compress(sample, coding)?.len(), SAMPLE) {
            return Ok((Coding::Raw, bytes));
        }
    }
    let stored = compress(&bytes, coding)?;
    if saves(stored.len(), bytes.len()) {
        Ok((coding, stored))
    } else {
        Ok((Coding::Raw, bytes))
    }
}

fn compress(bytes: &[u8], coding: Coding) -> Result<Vec<u8>> {
    match coding {
        Coding::Raw => Ok(bytes.to_vec()),
        Coding::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL).doing(|| "compressing with zstd"),
        Coding::Lz4 => Ok(lz4_flex::block::compress_prepend_size(bytes)),
    }
}

/// The bytes of a stored piece, at most [`PIECE`].
pub fn decode(name: &str, coding: Coding, stored: Vec<u8>) -> Result<Vec<u8>> {
    let damaged = |why: String| -> Error { error::damaged(format!("member {name}: {why}")) };
    let plain = match coding {
        Coding::Raw => stored,
        Coding::Zstd => {
            zstd::bulk::decompress(&stored, PIECE).map_err(|why| damaged(why.to_string()))?
        }
        Coding::Lz4 => {
            let size = stored
                .first_chunk::<4>()
                .map(|size| u32::from_le_bytes(*size) as usize)
                .filter(|size| *size <= PIECE)
                .ok_or_else(|| damaged("no size of a piece".to_owned()))?;
            let plain = lz4_flex::block::decompress(&stored[4..], size)
                .map_err(|why| damaged(why.to_string()))?;
            if plain.len() != size {
                return Err(damaged("less than the piece should have".to_owned()));
            }
            plain
        }
    };
    if plain.len() > PIECE {
        return Err(damaged(format!("a piece of {} bytes", plain.len())));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_piece_is_damage_and_never_costs_more_memory_than_a_piece() {
        let large = vec![0; 3 * PIECE];
        let zstd = zstd::bulk::compress(&large, 1).unwrap();
        let lz4 = lz4_flex::block::compress_prepend_size(&large);
        let mut short = lz4_flex::block::compress_prepend_size(b"some bytes, some bytes");
        short[..4].copy_from_slice(&(PIECE as u32).to_le_bytes());
        for (coding, stored) in [
            (Coding::Raw, large),
            (Coding::Zstd, zstd),
            (Coding::Zstd, vec![1; 100]),
            (Coding::Lz4, lz4),
            (Coding::Lz4, short),
            (Coding::Lz4, vec![0xff; 100]),
            (Coding::Lz4, vec![]),
            (Coding::Lz4, vec![1, 0]),
        ] {
            let error = decode("memory/x/000000", coding, stored).unwrap_err();
            assert_eq!(error.code(), "E-IMAGE-DAMAGED", "{error}");
        }
    }
}
