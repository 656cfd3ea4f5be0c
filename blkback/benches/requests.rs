//! Time of the request path in the simulated Xen, for direct, persistent and indirect requests and for
//! one to 200 disks.

mod load;

use criterion::{Criterion, Throughput};
use load::{Case, Load, driver_domains_turn};
use std::time::Duration;

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("requests");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    for case in Case::all() {
        let Some(mut load) = Load::new(case) else {
            println!("{}: not offered by the backend", case.name());
            continue;
        };
        let batch = (case.disks * case.depth) as u64;
        group.throughput(Throughput::Elements(batch));
        group.bench_function(case.name(), |bencher| {
            bencher.iter_custom(|times| {
                (0..times)
                    .map(|_| load.batch(driver_domains_turn).time)
                    .sum()
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    requests(&mut criterion);
    criterion.final_summary();
}
