//! Messages and services of KalamDB's gRPC interface, generated from the `.proto` files of this crate.
//!
//! Not here: any behaviour, and the messages of Arrow Flight, which come from `arrow-flight`. Invariant: the
//! `.proto` files alone suffice to write a client in any language.

pub mod live {
    //! Live queries.

    pub mod v1 {
        //! Version 1 of the live query interface: `LiveQuery.Subscribe` and its frames.

        #![allow(
            missing_docs,
            unreachable_pub,
            clippy::all,
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            clippy::clone_on_ref_ptr,
            reason = "the code is generated"
        )]

        tonic::include_proto!("kalamdb.live.v1");
    }
}

/// All files and their imports as an encoded `google.protobuf.FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn descriptors_name_the_service_and_its_imports() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptor set");
        let names: Vec<&str> = set.file.iter().map(|file| file.name()).collect();
        assert!(names.contains(&"kalamdb/live/v1/live.proto"), "{names:?}");
        assert!(names.contains(&"google/protobuf/duration.proto"), "{names:?}");
        let services: Vec<&str> =
            set.file.iter().flat_map(|file| &file.service).map(|service| service.name()).collect();
        assert_eq!(services, ["LiveQuery"]);
    }

    #[test]
    fn frame_numbers_are_those_of_the_published_interface() {
        let frame = live::v1::Frame {
            complete_through: 7,
            body: Some(live::v1::frame::Body::Progress(live::v1::Progress {})),
            ..Default::default()
        };
        assert_eq!(frame.encode_to_vec(), [0x08, 7, 0x72, 0]);
    }
}
