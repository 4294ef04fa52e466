//! The guides show what is there.

#[test]
fn the_guide_shows_the_reward_example_as_it_is() {
    let program = include_str!("../../examples/reward.rs").trim_end();
    let guide = include_str!("../../../../docs/guide/rewards.md");
    assert!(guide.contains(program), "copy examples/reward.rs into docs/guide/rewards.md");
}
