//! Reading and writing an image through `std::io`.
