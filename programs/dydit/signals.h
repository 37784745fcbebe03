// What ends the program from outside. A verb that can stop in good order is asked to; else, and at a second
// signal, it ends at once and leaves no temporary files behind.
#pragma once

#include "dydit/base/progress.h"

namespace dydit {

/// Called first: SIGINT, SIGTERM and SIGHUP end the program by themselves once the temporary files are gone;
/// a mapped file that was cut short (SIGBUS) ends it with one line that names the file, and 1.
void install_signal_handlers();

/// What a second signal does to a program that was asked to stop.
enum class SecondSignal {
  EndsAtOnce,
  Waits,  // it is saving what it has; only what cannot be caught ends it sooner
};

/// From now on the first SIGINT, SIGTERM or SIGHUP only sets the flag.
const CancelFlag& install_cancel_handler(SecondSignal second = SecondSignal::EndsAtOnce);

}  // namespace dydit
