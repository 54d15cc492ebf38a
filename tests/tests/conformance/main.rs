//! What a program sees under the preloaded library is what it sees without, and it leaves strangers alone.

mod engines;
mod launcher;
mod operations;
mod quiet;
mod space;
mod tools;
