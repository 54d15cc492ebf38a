//! One checkpoint of a program that keeps few of them: `rotate HOW NUMBER`, in the directory `ckpt`.
//!
//! `in-place` writes one file again and again, `two` takes turns between two, `chain` keeps the last four by renaming.

use std::fs;
use std::io;

const KEPT: u32 = 4;
const SIZE: usize = 256 << 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, how, number] = &arguments[..] else { return Err(io::Error::other("usage: rotate HOW NUMBER")) };
    let number: u32 = number.parse().map_err(io::Error::other)?;
    let content: Vec<u8> = (0..SIZE as u32).map(|index| (index.wrapping_mul(number | 1) >> 3) as u8).collect();
    match how.as_str() {
        "in-place" => fs::write("ckpt/state", content),
        "two" => fs::write(format!("ckpt/state.{}", number % 2), content),
        "chain" => {
            for place in (1..KEPT).rev() {
                match fs::rename(format!("ckpt/state.{}", place - 1), format!("ckpt/state.{place}")) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::write("ckpt/state.new", content)?;
            fs::rename("ckpt/state.new", "ckpt/state.0")
        }
        _ => Err(io::Error::other("HOW is in-place, two or chain")),
    }
}
