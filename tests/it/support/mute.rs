//! Stands before a server and passes no keepalives of the replication stream on.

use flagpost::demo::cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Where to connect to instead, without TLS.
pub(crate) async fn without_keepalives(cluster: &Cluster) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, server) = (listener.local_addr().unwrap().port(), cluster.port());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move {
                let (mut from, mut to) = (from_client, to_server);
                // Ends with the connection.
                copy(&mut from, &mut to).await.ok();
            });
            tokio::spawn(pass(from_server, to_client));
        }
    });
    let url = cluster.url("postgres", "flagsmith").replace(&format!(":{server}/"), &format!(":{port}/"));
    format!("{url}?sslmode=disable")
}

/// Message by message: a tag, a length that counts itself, a body. A keepalive is a CopyData of 18 bytes that begins with `k`.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut head = [0; 5];
    while from.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
        let mut body = vec![0; length];
        if from.read_exact(&mut body).await.is_err() {
            return;
        }
        let is_keepalive = head[0] == b'd' && length == 18 && body[0] == b'k';
        if !is_keepalive && to.write_all(&[&head[..], &body].concat()).await.is_err() {
            return;
        }
    }
}
