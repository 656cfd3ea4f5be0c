//! Random frontends, toolstacks and stores against the whole backend.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 50,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_nobody_else_notices(script in prop::collection::vec(any::<u8>(), 0..1000)) {
        bulkhead_blkback_testkit::play(&script);
    }
}
