// The table of one instruction set's kernels, for dispatch.cpp.
#include "kernels_of.h"

#define ADEPT_STRING_OF(name) #name
#define ADEPT_STRING(name) ADEPT_STRING_OF(name)

namespace adept::ADEPT_ISA {

const Kernels table = {
    ADEPT_STRING(ADEPT_ISA), linear, mlp, rotary_append, decode_attention, decode_step, read,
};

}  // namespace adept::ADEPT_ISA
