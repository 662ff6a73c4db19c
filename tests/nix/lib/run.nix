# One case for the harness: what it expects, as data, or one of its refusals.
{
  case,
  folders,
  refusal ? null,
}:
let
  tools = import ./default.nix folders;
  it = import (case + "/case.nix") tools;
  refusals = it.refuses or { };
in
if refusal != null then
  builtins.seq (builtins.deepSeq refusals.${refusal} null) "it was not refused"
else
  {
    expect = it.expect or { };
    holds = it.holds or { };
    refuses = builtins.attrNames refusals;
  }
