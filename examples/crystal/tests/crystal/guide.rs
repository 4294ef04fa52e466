//! The guides show what is there.

#[test]
fn the_guide_shows_the_ppo_example_as_it_is() {
    let program = include_str!("../../examples/ppo.rs").trim_end();
    let guide = include_str!("../../../../docs/guide/ppo.md");
    assert!(guide.contains(program), "copy examples/ppo.rs into docs/guide/ppo.md");
}
