//! How libsheaf.so is linked. It must load beside every C library from glibc 2.17 on, and stay loaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        "-Wl,-soname,libsheaf.so",
        "-Wl,-z,now",
        "-Wl,-z,nodelete",
        "-Wl,-z,defs",
        // dlsym lives in libdl.so.2 before glibc 2.34, and the newer stub of that name is on every system since.
        "-Wl,--push-state,--no-as-needed,-l:libdl.so.2,--pop-state",
        "-lc",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
