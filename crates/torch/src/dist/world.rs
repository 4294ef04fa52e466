//! Which process this is.

use crate::{Error, Result};

/// The place of this process among those that work together, and where they meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// This process, counted from 0.
    pub rank: usize,
    /// All processes.
    pub size: usize,
    /// This process among those of its machine, counted from 0; its CUDA device.
    pub local_rank: usize,
    /// Host or address of rank 0.
    pub master_addr: String,
    /// Port at which rank 0 listens.
    pub master_port: u16,
    /// Where torchrun itself listens at that port, instead of rank 0: how often it has started the ranks again.
    pub attempt: Option<u32>,
}

/// What a launcher tells, and in which variables.
struct Launcher {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

/// torchrun, `--nproc`, and PyTorchJob of Kubernetes, which starts one process in each pod and sets no `LOCAL_RANK`.
const TORCH: Launcher = Launcher { rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK" };
/// `srun`. In the batch script itself there is no step, and only one process.
const SLURM: Launcher =
    Launcher { rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS", local_rank: "SLURM_LOCALID" };
/// Set by torchrun where it serves the meeting place itself.
const AGENT: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// Set by torchrun.
const RESTARTS: &str = "TORCHELASTIC_RESTART_COUNT";
const ADDRESS: &str = "MASTER_ADDR";
const PORT: &str = "MASTER_PORT";

impl World {
    /// What the launcher says in the environment; `None` when no launcher started this process.
    ///
    /// | launcher | rank | size | local rank | meeting place |
    /// |---|---|---|---|---|
    /// | torchrun | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` | `MASTER_ADDR`, `MASTER_PORT` |
    /// | Kubernetes (PyTorchJob) | `RANK` | `WORLD_SIZE` | 0, one process in a pod | `MASTER_ADDR`, `MASTER_PORT` |
    /// | Slurm (`srun`) | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID` | the same if set, else the first host of `SLURM_STEP_NODELIST` and a port that follows from `SLURM_JOB_ID` |
    ///
    /// torchrun's variables win.
    ///
    /// # Errors
    /// When a variable is missing or makes no sense.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// How often torchrun has started this process again (`--max-restarts`), after a rank had failed; 0 without it.
    ///
    /// # Errors
    /// When its variable makes no sense.
    pub fn restarts() -> Result<u32> {
        restarts(&|name| std::env::var(name).ok())
    }

    /// [`from_env`](Self::from_env) with variables from elsewhere.
    ///
    /// ```
    /// use ruminate_torch::dist::World;
    ///
    /// let slurm = [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1"),
    ///     ("SLURM_STEP_NODELIST", "gpu[07-10]"), ("SLURM_JOB_ID", "1234")];
    /// let world = World::from_vars(|name| slurm.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))?;
    /// let world = world.ok_or("no launcher")?;
    /// assert_eq!((world.rank, world.size, world.local_rank), (5, 8, 1));
    /// assert_eq!(world.master_addr, "gpu07");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When a variable is missing or makes no sense.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let launcher = if var(TORCH.rank).is_some() || var(TORCH.size).is_some() {
            TORCH
        } else if var(SLURM.rank).is_some() && var(SLURM.size).is_some() {
            SLURM
        } else {
            return Ok(None);
        };
        let required = |name: &'static str| {
            var(name).ok_or_else(|| {
                refuse(
                    name,
                    "is not set, though others of the launcher's variables are; start with a launcher, or unset them",
                )
            })
        };
        let number = |name: &'static str, text: String| {
            text.trim()
                .parse::<usize>()
                .map_err(|_| refuse(name, format!("is `{text}`, but must be a whole number, 0 or above")))
        };
        let rank = number(launcher.rank, required(launcher.rank)?)?;
        let size = number(launcher.size, required(launcher.size)?)?;
        if rank >= size {
            let reason = format!("is {rank}, but must be below {} ({size})", launcher.size);
            return Err(refuse(launcher.rank, reason));
        }
        let local_rank = match var(launcher.local_rank) {
            Some(text) => number(launcher.local_rank, text)?,
            None => 0,
        };
        let slurm = launcher.rank == SLURM.rank;
        let master_addr = match var(ADDRESS) {
            Some(address) => address,
            None if slurm => first_host(&required("SLURM_STEP_NODELIST")?)?,
            None if size == 1 => "127.0.0.1".into(),
            None => return Err(refuse(ADDRESS, "is not set; it is the host or address of rank 0")),
        };
        let master_port = match var(PORT) {
            Some(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|&port: &u16| port > 0)
                .ok_or_else(|| refuse(PORT, format!("is `{text}`, but must lie between 1 and 65535")))?,
            // Below the ports that systems hand out by themselves.
            None if slurm => 15_000 + (number("SLURM_JOB_ID", required("SLURM_JOB_ID")?)? % 15_000) as u16,
            None => return Err(refuse(PORT, "is not set; it is the port at which rank 0 listens")),
        };
        let serves = |text: String| text.trim().eq_ignore_ascii_case("true") || text.trim() == "1";
        let attempt = var(AGENT).is_some_and(serves).then(|| restarts(&var)).transpose()?;
        Ok(Some(Self { rank, size, local_rank, master_addr, master_port, attempt }))
    }
}

/// How often torchrun has started the ranks again, after one of them had failed.
fn restarts(var: &impl Fn(&str) -> Option<String>) -> Result<u32> {
    let Some(text) = var(RESTARTS) else { return Ok(0) };
    text.trim()
        .parse()
        .map_err(|_| refuse(RESTARTS, format!("is `{text}`, but must be a whole number, 0 or above")))
}

fn refuse(variable: &'static str, reason: impl Into<String>) -> Error {
    Error::World { variable, reason: reason.into() }
}

/// The first host of a Slurm list such as `gpu[07-10,12],cpu3`.
fn first_host(list: &str) -> Result<String> {
    let wrong = || refuse("SLURM_STEP_NODELIST", format!("is `{list}`, which names no host; set {ADDRESS}"));
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let host = match rest.strip_prefix('[') {
        None => name.to_string(),
        Some(rest) => {
            let (numbers, suffix) = rest.split_once(']').ok_or_else(wrong)?;
            let first = numbers.split([',', '-']).next().unwrap_or_default();
            if first.is_empty() {
                return Err(wrong());
            }
            // `rack[1-2]node[01-04]`: every bracket gives its first number.
            let tail = &suffix[..suffix.find(',').unwrap_or(suffix.len())];
            let tail = if tail.contains('[') { first_host(suffix)? } else { tail.to_string() };
            format!("{name}{first}{tail}")
        }
    };
    if host.trim().is_empty() { Err(wrong()) } else { Ok(host) }
}
