//! A driver that has every RPC of CSI without knowing any: it records what it is asked and behaves
//! as it is told.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use cinderblock::csi::endpoint::Endpoint;
use cinderblock::csi::proto::FILE_DESCRIPTOR_SET;
use cinderblock::csi::proto::controller_server::ControllerServer;
use cinderblock::csi::proto::group_controller_server::GroupControllerServer;
use cinderblock::csi::proto::identity_server::IdentityServer;
use cinderblock::csi::proto::node_server::NodeServer;
use cinderblock::csi::proto::snapshot_metadata_server::SnapshotMetadataServer;
use cinderblock::csi::server::CsiSocket;
use prost_reflect::prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_stream::Iter;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tower::Service;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the driver does with every call.
#[derive(Debug, Clone)]
pub(crate) enum Behaviour {
    /// Answers these messages: one, or the parts of a stream.
    Answer(Vec<Value>),
    /// Answers an error.
    Refuse(Code, &'static str),
    /// Never answers.
    Hang,
}

/// One call the driver got.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The name of the RPC.
    pub(crate) method: String,
    /// The request, without the fields that have their default.
    pub(crate) request: Value,
    /// The deadline in the request's header.
    pub(crate) deadline: Option<String>,
}

/// The driver, serving on a socket in a directory of its own until dropped.
pub(crate) struct FakeDriver {
    pub(crate) directory: TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDriver {
    pub(crate) fn start(behaviour: &Behaviour) -> FakeDriver {
        let directory = tempfile::tempdir().unwrap();
        let endpoint: Endpoint =
            format!("unix://{}/csi.sock", directory.path().display()).parse().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let routes = Routes::new(Fake::<IdentityServer<()>>::new(&pool, behaviour, &calls))
            .add_service(Fake::<ControllerServer<()>>::new(&pool, behaviour, &calls))
            .add_service(Fake::<GroupControllerServer<()>>::new(&pool, behaviour, &calls))
            .add_service(Fake::<SnapshotMetadataServer<()>>::new(&pool, behaviour, &calls))
            .add_service(Fake::<NodeServer<()>>::new(&pool, behaviour, &calls));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = runtime.block_on(CsiSocket::bind(&endpoint)).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let shutdown = async { _ = stopped.await };
            runtime.block_on(socket.serve(routes, Duration::ZERO, shutdown)).unwrap();
        });
        FakeDriver { directory, calls, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/csi.sock", self.directory.path().display())
    }

    /// A file beside the socket.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The service that the generated server `S` names.
struct Fake<S> {
    pool: DescriptorPool,
    behaviour: Behaviour,
    calls: Arc<Mutex<Vec<Call>>>,
    server: PhantomData<fn(S)>,
}

impl<S> Fake<S> {
    fn new(pool: &DescriptorPool, behaviour: &Behaviour, calls: &Arc<Mutex<Vec<Call>>>) -> Fake<S> {
        let (pool, behaviour, calls) = (pool.clone(), behaviour.clone(), calls.clone());
        Fake { pool, behaviour, calls, server: PhantomData }
    }
}

impl<S> Clone for Fake<S> {
    fn clone(&self) -> Fake<S> {
        Fake::new(&self.pool, &self.behaviour, &self.calls)
    }
}

impl<S: NamedService> NamedService for Fake<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: NamedService> Service<http::Request<Body>> for Fake<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.pool.get_service_by_name(S::NAME).unwrap();
        let name = request.uri().path().rsplit('/').next().unwrap();
        let method = service.methods().find(|method| method.name() == name).expect("an RPC of CSI");
        let handler =
            Handler { method, behaviour: self.behaviour.clone(), calls: self.calls.clone() };
        Box::pin(async move {
            let mut grpc = Grpc::new(DynamicCodec(handler.method.clone()));
            Ok(if handler.method.is_server_streaming() {
                grpc.server_streaming(handler, request).await
            } else {
                grpc.unary(handler, request).await
            })
        })
    }
}

/// One RPC.
struct Handler {
    method: MethodDescriptor,
    behaviour: Behaviour,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Handler {
    fn answers(
        &self,
        request: &Request<DynamicMessage>,
    ) -> BoxFuture<Result<Vec<DynamicMessage>, Status>> {
        let options =
            SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true);
        let body = request
            .get_ref()
            .serialize_with_options(serde_json::value::Serializer, &options)
            .unwrap();
        let deadline = request.metadata().get("grpc-timeout");
        self.calls.lock().unwrap().push(Call {
            method: self.method.name().to_owned(),
            request: body,
            deadline: deadline.map(|value| value.to_str().unwrap().to_owned()),
        });
        let (output, behaviour) = (self.method.output(), self.behaviour.clone());
        Box::pin(async move {
            match behaviour {
                Behaviour::Answer(answers) => Ok(answers
                    .into_iter()
                    .map(|answer| DynamicMessage::deserialize(output.clone(), answer).unwrap())
                    .collect()),
                Behaviour::Refuse(code, message) => Err(Status::new(code, message)),
                Behaviour::Hang => pending().await,
            }
        })
    }
}

impl UnaryService<DynamicMessage> for Handler {
    type Response = DynamicMessage;
    type Future = BoxFuture<Result<Response<DynamicMessage>, Status>>;

    fn call(&mut self, request: Request<DynamicMessage>) -> Self::Future {
        let answers = self.answers(&request);
        Box::pin(async move { Ok(Response::new(answers.await?.remove(0))) })
    }
}

impl ServerStreamingService<DynamicMessage> for Handler {
    type Response = DynamicMessage;
    type ResponseStream = Iter<std::vec::IntoIter<Result<DynamicMessage, Status>>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<DynamicMessage>) -> Self::Future {
        let answers = self.answers(&request);
        Box::pin(async move {
            let parts: Vec<_> = answers.await?.into_iter().map(Ok).collect();
            Ok(Response::new(tokio_stream::iter(parts)))
        })
    }
}

/// Decodes requests of one method by its descriptor, and encodes any message.
struct DynamicCodec(MethodDescriptor);

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> DynamicEncoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> DynamicDecoder {
        DynamicDecoder(self.0.input())
    }
}

struct DynamicEncoder;

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(
        &mut self,
        message: DynamicMessage,
        buffer: &mut EncodeBuf<'_>,
    ) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

struct DynamicDecoder(MessageDescriptor);

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
