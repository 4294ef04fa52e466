//! The guides show what is there.

#[test]
fn the_guide_shows_the_ppo_example_as_it_is() {
    let program = include_str!("../../examples/ppo.rs").trim_end();
    let guide = include_str!("../../../../docs/guide/ppo.md");
    assert!(guide.contains(program), "copy examples/ppo.rs into docs/guide/ppo.md");
}

#[test]
fn the_guide_shows_the_quark_example_as_it_is() {
    let program = include_str!("../../examples/quark.rs").trim_end();
    let guide = include_str!("../../../../docs/guide/quark.md");
    assert!(guide.contains(program), "copy examples/quark.rs into docs/guide/quark.md");
}
