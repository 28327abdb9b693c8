// Where torch finds this package's operators: torch.ops.normgate. Each copy in a process has a namespace of its own.
#pragma once

#define NORMGATE_OPS normgate
#define NORMGATE_QUALIFIED(op) "normgate::" op
