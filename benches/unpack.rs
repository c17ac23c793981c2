//! How long `strata convert` takes beside `umoci unpack` of the same image, which compresses and publishes nothing.
//!
//! Run with `cargo bench --bench unpack`. The image is `oci:DIR:TAG` in `STRATA_BENCH_IMAGE`; without it, a Debian base
//! system is made with mmdebstrap (which needs root and a Debian mirror). The two programs take turns, each into an
//! empty folder; what is printed are the medians and their ratio.

mod side_by_side;

use std::process::Command;

use side_by_side::{RUNS, convert, image, init, median, time};

fn main() {
    let folder = tempfile::tempdir().expect("there is room for a benchmark");
    let image = image(folder.path());
    let layout = image.strip_prefix("oci:").expect("STRATA_BENCH_IMAGE is oci:DIR:TAG");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let repository = folder.path().join(format!("run{run}.example.org"));
        let bundle = folder.path().join(format!("bundle{run}"));
        init(&repository);
        ours.push(time(convert(&repository).args([&image, "--name", "bench.example.org/image:1"])));
        theirs.push(time(Command::new("umoci").args(["unpack", "--image", layout]).arg(&bundle)));
        for result in [repository, bundle] {
            std::fs::remove_dir_all(result).expect("what was made can be deleted");
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("strata convert  {:.2} s", ours.as_secs_f64());
    println!("umoci unpack    {:.2} s", theirs.as_secs_f64());
    println!("ratio           {:.2}", ours.as_secs_f64() / theirs.as_secs_f64());
}
