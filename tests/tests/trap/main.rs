//! `sheaf run --trap`: programs that no library can be preloaded into, twice on the same input, without and with Sheaf;
//! then again from the aggregate alone. And where the trap cannot be set: the program runs as if nobody had asked.

mod life;
mod programs;
mod refused;
