//! What a program sees under the preloaded library is what it sees without, and it leaves strangers alone.

mod attributes;
mod calls;
mod crowd;
mod descriptors;
mod durable;
mod engines;
mod environment;
mod files;
mod launcher;
mod links;
mod listings;
mod moments;
mod moves;
mod operations;
mod prune;
mod quiet;
mod replaced;
mod space;
mod streams;
mod symbols;
mod tools;
