# What changes when a secret's value does, and tells nothing of it: the hash of the encrypted value alone. The rest of the
# file changes with its readers too, and nothing is to restart because an operator came or left.
path:
let
  text = builtins.readFile path;
  # A file that sops did not write is damaged; `muster vars check` tells of it.
  file = if builtins.substring 0 1 text == "{" then builtins.fromJSON text else { };
in
if builtins.pathExists path then builtins.hashString "sha256" (file.data or text) else null
