//! Training in several processes: what it costs to be one of them.

use std::cell::Cell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use ruminate_torch::dist::{ProcessGroup, Reducer, Sharding, World};
use ruminate_torch::optim::{Adam, Optimizer, zero_grad};
use tch::Tensor;

use crate::models::Model;
use crate::training::{ADAM, LR};
use crate::{Setting, Workload};

/// The step of `sft` as a rank of the group that the environment describes, on its part of the rows; without one, as the only rank
/// of a group.
pub(crate) fn plain<M: Model>(setting: &Setting) -> Result<Workload> {
    step::<M>(setting, Sharding::None)
}

/// The same with the optimizer's states, and so the gradients, divided among the ranks.
pub(crate) fn optimizer<M: Model>(setting: &Setting) -> Result<Workload> {
    step::<M>(setting, Sharding::Optimizer)
}

fn world() -> Result<World> {
    if let Some(world) = World::from_env()? {
        return Ok(world);
    }
    let master_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let master_addr = "127.0.0.1".to_string();
    Ok(World { rank: 0, size: 1, local_rank: 0, master_addr, master_port, attempt: None })
}

fn step<M: Model>(setting: &Setting, sharding: Sharding) -> Result<Workload> {
    let world = world()?;
    let group = Rc::new(ProcessGroup::join(&world, setting.device, Duration::from_secs(60))?);
    let rows = setting.rows(8);
    let own = rows / world.size;
    anyhow::ensure!(own > 0, "{rows} rows are too few for {} processes", world.size);
    let examples: Vec<_> = setting.lessons(rows).into_iter().skip(own * world.rank).take(own).collect();
    let mut model: M = setting.build()?;
    model.set_training(true);
    let count = model.parameters().count();
    let named = model.parameters().named();
    let parameters: Vec<Tensor> = named.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
    let mut reducer = Reducer::new(group, &parameters, sharding)?;
    let named = named.into_iter().enumerate().filter(|(i, _)| reducer.owns(*i)).map(|(_, named)| named);
    let mut adam = Adam::new(named.collect(), ADAM)?;
    let tokens = own * world.size * (setting.source + setting.target);
    let forward = setting.clone();
    let sent: Rc<Cell<u64>> = Rc::default();
    let counter = Rc::clone(&sent);
    let workload = Workload::in_phases(setting, (rows, tokens, count), move |phases| {
        zero_grad(&parameters)?;
        let loss = phases.time("forward", || {
            forward.forward(|| {
                let loss = model.cross_entropy(&examples)?;
                Ok(loss.sum.f_div_scalar(loss.count as f64 * world.size as f64)?)
            })
        })?;
        reducer.begin();
        phases.time("backward", || loss.f_backward()).context("backward")?;
        phases.time("communication", || reducer.finish(true))?;
        phases.time("optimizer", || {
            let _ = reducer.clip_grad_norm(adam.parameters(), 1.0)?;
            adam.step(LR)
        })?;
        phases.time("communication", || reducer.publish())?;
        counter.set(reducer.bytes());
        Ok(())
    });
    Ok(Workload { sent, ..workload })
}
