// Makes checksums and lengths of a mutant right where its structure still tells where they are.
#pragma once

#include <string>

namespace dydit::fuzz {

/// The header's length: up to the last '}' after which the seed's data could begin.
void repair_safetensors(std::string& file);
/// The CRC of each chunk.
void repair_png(std::string& file);
/// The checksum of each header block, found by walking the sizes.
void repair_tar(std::string& file);
/// Both masked CRCs of each record.
void repair_events(std::string& file);

}  // namespace dydit::fuzz
