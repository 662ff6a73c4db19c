# An inventory in each of the forms that mkFleet takes, as a list of { label; value; }.
{ lib, inputs, self }:
let
  inherit (builtins)
    concatLists
    genList
    elemAt
    isFunction
    isList
    isPath
    length
    ;
  named =
    label: given:
    if isList given then
      concatLists (genList (n: named "${label} ${toString (n + 1)}" (elemAt given n)) (length given))
    else if isPath given then
      named (baseNameOf (toString given)) (import given)
    else if isFunction given then
      named label (given { inherit lib inputs self; })
    else
      [
        {
          inherit label;
          value = given;
        }
      ];
in
named "inventory"
