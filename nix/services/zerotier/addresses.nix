# The addresses that ZeroTier derives from the IDs of a network and a node, with builtins alone
# (InetAddress::makeIpv6rfc4193 and makeIpv66plane of the ZeroTier sources).
let
  inherit (builtins)
    bitXor
    concatStringsSep
    genList
    stringLength
    substring
    ;
  ipv6 = import ../common/ipv6.nix;

  digits = "0123456789abcdef";
  digit = index: substring index 1 digits;
  valueOf = builtins.listToAttrs (
    genList (index: {
      name = digit index;
      value = index;
    }) 16
  );
  xor =
    left: right:
    concatStringsSep "" (
      genList (
        index: digit (bitXor valueOf.${substring index 1 left} valueOf.${substring index 1 right})
      ) (stringLength left)
    );
in
{
  rfc4193 = network: node: ipv6.fromHex "fd${network}9993${node}";
  "6plane" =
    network: node:
    ipv6.fromHex "fc${xor (substring 0 8 network) (substring 8 8 network)}${node}000000000001";

  # The node that an rfc4193 address belongs to.
  nodeOf = address: substring 22 10 (ipv6.toHex address);

  isNode = text: builtins.match "[0-9a-f]{10}" text != null;
  isNetwork = text: builtins.match "[0-9a-f]{16}" text != null;
}
