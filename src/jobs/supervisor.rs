//! What the service manager is told where there is one (systemd's `Type=notify`): ready, waiting for what, stopping, and by
//! its watchdog that work is still being scheduled. Without `NOTIFY_SOCKET` nothing happens. It never decides anything.

use sd_notify::NotifyState;

/// Work is taken from now on. Beats the watchdog's time, at twice the pace that it asks for, from this runtime: when no
/// task gets to run any more, the service manager hears nothing and starts the process anew.
pub fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("ready")]);
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        loop {
            tell(&[NotifyState::Watchdog]);
            tokio::time::sleep(limit / 2).await;
        }
    });
}

pub fn waiting(reason: &str) {
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    tell(&[NotifyState::Status(&format!("waiting for the database: {line}"))]);
}

pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!(error:% = error; "the service manager was not told");
    }
}
