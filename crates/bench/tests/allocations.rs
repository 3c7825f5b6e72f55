//! What a dial may allocate.

use anyproxy_bench::stack;
use anyproxy_core::DialService;

/// The goal for the whole stack.
const MOST: u64 = 4;

#[test]
fn the_stock_stack_allocates_four_times_a_dial_at_most() {
    let bare = allocations(&stack::Terminal);
    let stock = allocations(&stack::stock());
    let limited = allocations(&stack::limited());
    println!("bare {bare}, stock {stock}, limited {limited}");
    assert!(stock - bare <= MOST, "{} more than the bare terminal", stock - bare);
    assert!(limited - bare <= MOST, "{} more than the bare terminal", limited - bare);
}

/// Of one dial and its stream, once everything has been seen before.
fn allocations(dials: &impl DialService) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let wish = stack::Wish::of_alice().logged_in();
    runtime.block_on(async {
        for _ in 0..100 {
            drop(dials.dial(wish.dial()).await);
        }
    });
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..100 {
                drop(dials.dial(wish.dial()).await);
            }
        });
    });
    counted.count_total / 100
}
