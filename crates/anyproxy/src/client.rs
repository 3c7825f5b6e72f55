//! `anyproxy client`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyproxy_client::{Client, Handle};
use anyproxy_tunnel::{DroppedDatagrams, Memory};
use anyproxy_workers::Workers;
use futures_util::future::{self, OptionFuture};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Probe};
use crate::failure::Failure;
use crate::reload::{Fixed, Reloads};
use crate::runtime::Runtime;
use crate::settings::{self, Source};
use crate::{logging, process, reload};

/// Runs the client until a signal ends it.
pub(crate) fn run(file: Option<&Path>) -> Result<ExitCode, Failure> {
    let runtime = Runtime::start()?;
    let source = Source::load(file)?;
    let section = source.required("client", source.file.client.as_ref())?;
    let logging = logging::start(source.file.log.as_ref());
    let mut settings = settings::Client::new(&source, section)?;
    let fixed = Fixed::of_client(&settings, section, &source.file);
    settings.config.max_descriptors = settings::users(process::raise_open_files());
    let dropped_lines = logging.dropped_lines();
    runtime.run(|stop, hangups, workers| async move {
        let admin = admin::Bound::new(source.file.admin.as_ref(), dropped_lines)?;
        let reloads = (Reloads::new(source.into(), hangups), fixed);
        serve(settings, Some(reloads), admin, &workers, stop).await
    })
}

/// Runs the client until `stop`, and takes its file over anew where that may change, and then until its streams have ended
/// or their time is over.
pub(crate) async fn serve(
    mut settings: settings::Client,
    reloads: Option<(Reloads, Fixed)>,
    admin: Option<admin::Bound>,
    workers: &Workers,
    stop: CancellationToken,
) -> Result<(), Failure> {
    workers.set_busy_poll(settings.busy_poll);
    settings.config.seats = Some(workers.tunnels());
    let memory = settings.config.tunnel.memory.clone();
    let dropped = settings.config.tunnel.dropped_datagrams.clone();
    let client = Client::new(settings.config).map_err(|error| Failure::of("client", error))?;
    let (handle, workers) = (client.handle(), workers.clone());
    let probe = Arc::new(Tunnels {
        handle: handle.clone(),
        memory,
        dropped,
        workers: workers.clone(),
        stop: stop.clone(),
    });
    let reloading = reloads.map(|(reloads, fixed)| reloads.serve(reload::Client { handle, workers, fixed }));
    // The admin listener lives until the last stream is gone: somebody watches the drain.
    let done = CancellationToken::new();
    let admin = admin.map(|admin| admin.serve(probe, done.clone()));
    let client = async {
        client.run(stop.clone()).await;
        done.cancel();
    };
    let served = future::join(client, OptionFuture::from(admin));
    tokio::select! {
        _ = served => {}
        Some(never) = OptionFuture::from(reloading) => match never {},
    }
    if stop.is_cancelled() {
        Ok(())
    } else {
        // Whoever restarts what fails would take success for the end that was wanted.
        Err(Failure::of("client", "no thread keeps its tunnels any more"))
    }
}

/// A client is ready while it has a tunnel and has not been told to stop.
struct Tunnels {
    handle: Handle,
    memory: Memory,
    dropped: DroppedDatagrams,
    workers: Workers,
    stop: CancellationToken,
}

impl Probe for Tunnels {
    fn measure(&self) {
        admin::measure_memory(&self.memory);
        admin::measure_dropped(&self.dropped);
        admin::measure_waits(&self.workers);
        #[expect(clippy::cast_precision_loss, reason = "there are not 2^52 tunnels")]
        metrics::gauge!("anyproxy_tunnels").set(self.handle.tunnels() as f64);
    }

    fn is_ready(&self) -> bool {
        self.handle.tunnels() > 0 && !self.stop.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_workers::Pulse;

    use super::*;
    use crate::settings::fixture::{CLIENT, source};

    #[tokio::test]
    async fn a_client_that_ends_though_nobody_asked_it_to_has_failed() {
        let (source, _dir) = source(CLIENT);
        let settings = || {
            let section = source.file.client.as_ref().unwrap();
            settings::Client::new(&source, section).unwrap()
        };
        let (runtime, pulse) = Pulse::runtime().unwrap();
        let (workers, _crew) = {
            let _inside = runtime.enter();
            Workers::start(1, pulse).unwrap()
        };
        // The one thread its tunnel could be put on.
        runtime.shutdown_background();
        let (stop, asked) = (CancellationToken::new(), CancellationToken::new());
        asked.cancel();
        let failure = serve(settings(), None, None, &workers, stop).await.unwrap_err();
        assert!(failure.to_string().contains("tunnels"), "{failure}");
        serve(settings(), None, None, &workers, asked).await.unwrap();
    }
}
