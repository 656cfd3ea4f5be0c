//! Several tasks on one host at the same time.

use anyhow::{Result, anyhow};
use std::thread;

/// Runs `work` for 0 to `count`, each on a thread of its own, and returns the results.
pub fn run<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|n| scope.spawn(move || work(n))).collect();
        // All of them are waited for before the first error ends the scenario.
        let results: Vec<Result<T>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a panic"))))
            .collect();
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::run;
    use anyhow::ensure;

    #[test]
    fn results_are_in_order_and_an_error_is_not_lost() {
        assert_eq!(run(3, |n| Ok(n * n)).unwrap(), [0, 1, 4]);
        let odd = run(3, |n| {
            ensure!(n != 1, "one is odd");
            Ok(n)
        });
        assert_eq!(odd.unwrap_err().to_string(), "one is odd");
    }
}
