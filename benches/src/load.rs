//! Closed-loop load: every client runs one operation after the other until the round is over.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Result;
use crate::report::Samples;

/// The operation a client repeats.
pub(crate) trait Operation: Send + 'static {
    fn run(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// The measurements of one or more rounds.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) samples: Samples,
    /// Operations per second, one figure per round.
    pub(crate) rates: Vec<f64>,
}

/// Runs one round of all clients at once; returns the clients for the next round.
pub(crate) async fn round<O: Operation>(
    clients: Vec<O>,
    length: Duration,
    load: &mut Load,
) -> Result<Vec<O>> {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while begin.elapsed() < length {
                let start = Instant::now();
                client.run().await?;
                samples.push(start.elapsed());
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((client, samples))
        });
    }
    let (mut clients, mut done) = (Vec::new(), 0);
    while let Some(ended) = tasks.join_next().await {
        let (client, samples) = ended??;
        clients.push(client);
        done += samples.len();
        load.samples.append(samples);
    }
    load.rates.push(done as f64 / begin.elapsed().as_secs_f64());
    Ok(clients)
}

/// Runs rounds of two contestants in turn, after a shorter unmeasured round of each.
pub(crate) async fn duel<A: Operation, B: Operation>(
    mut ours: Vec<A>,
    mut floor: Vec<B>,
    length: Duration,
    rounds: usize,
) -> Result<(Load, Load)> {
    let mut warm_up = Load::default();
    ours = round(ours, length / 4, &mut warm_up).await?;
    floor = round(floor, length / 4, &mut warm_up).await?;
    let (mut our_load, mut floor_load) = (Load::default(), Load::default());
    for _ in 0..rounds {
        ours = round(ours, length, &mut our_load).await?;
        floor = round(floor, length, &mut floor_load).await?;
    }
    Ok((our_load, floor_load))
}
