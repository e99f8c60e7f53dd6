//! Work split over threads whose results come back in order.

use std::ops::Range;

/// Calls `make` for `0..n` on `threads` threads and `take` with each result, in order, on this one. At most `threads`
/// results are held at a time; the first error of either ends it. What comes out does not depend on `threads`.
pub fn in_order<T, E>(
    n: usize,
    threads: usize,
    make: impl Fn(usize) -> Result<T, E> + Sync,
    mut take: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E>
where
    T: Send,
    E: Send,
{
    let threads = threads.max(1);
    for start in (0..n).step_by(threads) {
        let wave: Range<usize> = start..(start + threads).min(n);
        let results: Vec<Result<T, E>> = if wave.len() == 1 {
            wave.map(&make).collect()
        } else {
            std::thread::scope(|scope| {
                let make = &make;
                let handles: Vec<_> = wave.map(|i| scope.spawn(move || make(i))).collect();
                handles
                    .into_iter()
                    .map(|h| h.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
                    .collect()
            })
        };
        for result in results {
            take(result?)?;
        }
    }
    Ok(())
}

/// Threads to use where nothing was asked for.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for threads in [0, 1, 2, 3, 16] {
            let mut got = Vec::new();
            in_order(10, threads, Ok::<_, ()>, |i| {
                got.push(i);
                Ok(())
            })
            .unwrap();
            assert_eq!(got, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_it() {
        let mut taken = 0;
        let make = |i| if i == 3 { Err("three") } else { Ok(i) };
        let end = in_order(10, 2, make, |_| {
            taken += 1;
            Ok(())
        });
        assert_eq!((end, taken), (Err("three"), 3));
    }
}
