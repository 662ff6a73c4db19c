# IPv6 addresses as text, with builtins alone.
let
  inherit (builtins)
    concatStringsSep
    elemAt
    filter
    foldl'
    genList
    head
    isString
    length
    split
    stringLength
    substring
    ;

  words = separator: text: filter isString (split separator text);

  # A group without its leading zeros.
  short =
    group:
    if stringLength group > 1 && substring 0 1 group == "0" then
      short (substring 1 (stringLength group) group)
    else
      group;
  padded = group: substring (stringLength group) 4 "0000" + group;

  # The first of the longest runs of at least two zero groups, which RFC 5952 shortens.
  longestRun =
    groups:
    let
      step =
        state: index:
        if elemAt groups index != "0" then
          state // { current = 0; }
        else
          let
            current = state.current + 1;
          in
          if current > state.best then
            {
              inherit current;
              best = current;
              start = index + 1 - current;
            }
          else
            state // { inherit current; };
    in
    foldl' step {
      current = 0;
      best = 1;
      start = null;
    } (genList (index: index) (length groups));
in
rec {
  # 32 hexadecimal digits as an address in its canonical form (RFC 5952).
  fromHex =
    hex:
    let
      groups = genList (index: short (substring (4 * index) 4 hex)) 8;
      run = longestRun groups;
      part = from: to: concatStringsSep ":" (genList (index: elemAt groups (from + index)) (to - from));
    in
    assert stringLength hex == 32;
    if run.start == null then
      part 0 8
    else
      "${part 0 run.start}::${part (run.start + run.best) 8}";

  # The 32 hexadecimal digits of an address without a dotted part.
  toHex =
    address:
    let
      halves = words "::" address;
      groups = half: if half == "" then [ ] else words ":" half;
      left = groups (head halves);
      right = if length halves == 1 then [ ] else groups (elemAt halves 1);
      missing = 8 - length left - length right;
      hex = concatStringsSep "" (map padded (left ++ genList (_: "0") missing ++ right));
    in
    assert missing == 0 || length halves == 2;
    hex;

  # As written in a URL and before a port.
  bracketed = address: if builtins.match ".*:.*" address == null then address else "[${address}]";
}
