//! Answers until they are read: whoever asks for large ones and does not take them holds memory, of which each workspace
//! has its share. They go out piece by piece, or all of one would be copied for the connection at once.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::middleware::Next;
use actix_web::{HttpMessage, web};
use bytes::Bytes;

use super::respond;
use crate::app::App;
use crate::auth::Caller;
use crate::net::budget::{Room, Tenant};

/// Smaller ones are held by the connection anyway.
const COUNTED_FROM: u64 = 64 * 1024;
const PIECE_BYTES: usize = 256 * 1024;

/// Stands around every handler, inside what compresses. Only what changes nothing is refused: of a write it must be told
/// what became of it.
pub async fn count_unread(
    app: web::Data<App>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let is_question =
        *request.method() == Method::GET || request.path().trim_end_matches('/').ends_with("/search");
    let response = next.call(request).await?.map_into_boxed_body();
    let size = match response.response().body().size() {
        BodySize::Sized(size) if size > COUNTED_FROM => size as usize,
        _ => return Ok(response),
    };
    let workspace = response.request().extensions().get::<Caller>().map(|caller| caller.workspace_id);
    // what everybody may read is the same for all
    let Some(workspace_id) = workspace else { return Ok(response) };
    let mut room = app.answers.room(Tenant::Workspace(workspace_id));
    if let Err(error) = room.try_grow(size)
        && is_question
    {
        return Ok(response.into_response(respond::error(&error)));
    }
    Ok(response.map_body(|_, body| match body.try_into_bytes() {
        Ok(rest) => BoxBody::new(Unread { rest, _room: room }),
        Err(body) => body,
    }))
}

/// What is left of an answer.
struct Unread {
    rest: Bytes,
    _room: Room,
}

impl MessageBody for Unread {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::budget::Budget;

    #[actix_web::test]
    async fn an_answer_holds_its_room_until_its_last_piece() {
        let budget = Budget::new(2_000 * 1024);
        let room = |bytes: usize| {
            let mut room = budget.room(Tenant::Workspace(1));
            room.try_grow(bytes).map(|()| room)
        };
        let text: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
        let _room = room(text.len()).expect("room");
        let mut body = BoxBody::new(Unread { rest: Bytes::from(text.clone()), _room });
        assert_eq!(body.size(), BodySize::Sized(600_000));
        let mut read = Vec::new();
        while let Some(piece) = std::future::poll_fn(|context| body.as_pin_mut().poll_next(context)).await {
            assert!(room(500_000).is_err(), "it is not read to its end");
            let piece = piece.expect("it cannot fail");
            assert!(piece.len() <= PIECE_BYTES);
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, text);
        drop(body);
        assert!(room(500_000).is_ok());
    }
}
