# Mistakes as one message: all of them at once, so that all can be fixed at once.
problems: result:
let
  count = builtins.length problems;
  lines = builtins.concatStringsSep "\n" (map (problem: "- ${problem}") problems);
in
if count == 0 then
  result
else if count == 1 then
  throw (builtins.head problems)
else
  throw "the inventory has ${toString count} mistakes:\n${lines}"
