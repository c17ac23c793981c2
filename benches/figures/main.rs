//! Every figure of the README, measured in one run: `cargo bench --bench figures`.

mod images;
mod limit;

use std::env;
use std::path::PathBuf;

fn main() {
    let folder = env::var_os("STRATA_BENCH_DIR").map_or_else(|| PathBuf::from("target/figures"), PathBuf::from);
    std::fs::create_dir_all(&folder).expect("there is room for images");
    let hep = images::hep(&folder);
    println!("{}", hep.image("hep"));
    let layers = hep.layers("hep");
    let cuts = limit::Cuts::find(&layers);
    for mode in env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        let objects = folder.join(format!("objects-{mode}"));
        std::fs::create_dir(&objects).expect("there is room for objects");
        let compression = mode.parse().expect("modes have names");
        println!("{mode} {:.2} s", limit::run(&layers, &cuts, compression, 2, &objects).as_secs_f64());
    }
}
