//! What a server does periodically.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::info;

use crate::recheck;
use crate::session::Services;
use switchyard_config::Config;
use switchyard_hub::Hub;
use switchyard_hub::connections::Pulse;
use switchyard_telemetry::supervise::Ended;
use switchyard_types::close::CloseReason;

/// Checks existing subscriptions again when plugins change.
pub fn recheck(config: &Config, services: &Services) -> impl Future<Output = Ended> + use<> {
    recheck::run(
        services.middleware.clone(),
        services.hub.clone(),
        config.plugins.recheck_names_per_second_max,
    )
}

/// Pings idle connections, closes those that do not reply, and does other periodic work.
pub async fn keep_alive(config: Arc<Config>, hub: Arc<Hub>) -> Ended {
    let websocket = &config.websocket;
    let times = [websocket.pong_time, config.outbox.soft_time, config.memory.input_time];
    let shortest = times.into_iter().fold(websocket.ping_interval, Duration::min);
    let mut ticks = tokio::time::interval(
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)),
    );
    let had_failed_shards = AtomicBool::new(false);
    loop {
        ticks.tick().await;
        let connections = hub.connections();
        let input_time = connections.memory().input_time();
        for connection in connections.opened_ones() {
            connection.outbox.check();
            if connections.is_input_late(&connection, input_time) {
                connection.outbox.close(CloseReason::SlowInput);
            }
            let Some(ping) = connection.encoding().encoder().ping() else {
                // TCP keepalive detects whether it is still there, as in Redis.
                let idle_time = config.resp.as_ref().and_then(|resp| resp.idle_time);
                if idle_time.is_some_and(|time| connections.is_idle(&connection, time)) {
                    connection.outbox.close(CloseReason::Idle);
                }
                continue;
            };
            match connections.pulse(&connection, websocket.ping_interval, websocket.pong_time) {
                Pulse::Fine => {}
                Pulse::PingDue => connection.outbox.push(ping),
                // A client that does not read cannot reply: that has a limit of its own.
                Pulse::Lost if connection.outbox.is_congested() => {}
                Pulse::Lost => connection.outbox.close(CloseReason::PingTimeout),
            }
        }
        // Retry a shard that was given up even if no request needs it.
        let has_failed_shards = hub.retry_failed_shards() > 0;
        if had_failed_shards.swap(has_failed_shards, Ordering::Relaxed) && !has_failed_shards {
            info!("the engine is available again");
        }
    }
}
