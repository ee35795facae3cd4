# The compact model bundle, at /share/ticket-enrichment/bundle: built from the official weights, pinned by hash, by the
# export, which compares its result with sentence-transformers. The digest depends on nixpkgs' versions of torch and
# transformers, so it may differ from that of `make bundle`.
{
  lib,
  fetchurl,
  python313,
  stdenvNoCC,
  ticket-enrichment,
}:

let
  # enrichment/export/sources.py also pins the first three; sentence-transformers needs the others.
  repository = "sentence-transformers/all-MiniLM-L6-v2";
  revision = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41";
  files = {
    "model.safetensors" = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";
    "tokenizer.json" = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037";
    "config.json" = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41";
    "1_Pooling/config.json" = "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23";
    "config_sentence_transformers.json" = "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3";
    "modules.json" = "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf";
    "sentence_bert_config.json" = "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7";
    "special_tokens_map.json" = "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3";
    "tokenizer_config.json" = "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b";
    "vocab.txt" = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3";
  };
  weights = builtins.mapAttrs (
    path: sha256:
    fetchurl {
      name = baseNameOf path;
      url = "https://huggingface.co/${repository}/resolve/${revision}/${path}";
      inherit sha256;
    }
  ) files;
  copies = map (path: "cp ${weights.${path}} weights/${path}") (builtins.attrNames weights);
  python = python313.withPackages (_: [ ticket-enrichment ] ++ ticket-enrichment.optional-dependencies.export);
in
stdenvNoCC.mkDerivation {
  pname = "ticket-bundle";
  inherit (ticket-enrichment) version;

  dontUnpack = true;
  buildPhase = ''
    runHook preBuild
    mkdir -p weights/1_Pooling
    ${builtins.concatStringsSep "\n" copies}
    HOME=$TMPDIR HF_HUB_OFFLINE=1 ${python}/bin/python3 -P -m enrichment.export compact --source weights --out bundle
    runHook postBuild
  '';
  installPhase = ''
    runHook preInstall
    mkdir -p $out/share/ticket-enrichment
    cp -r bundle $out/share/ticket-enrichment/
    runHook postInstall
  '';

  # Verifies every hash again and runs the models.
  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    ${python}/bin/python3 -P -c \
      'import sys, enrichment; enrichment.Enricher.open(sys.argv[1], verify=True)' $out/share/ticket-enrichment/bundle
    runHook postInstallCheck
  '';

  passthru = { inherit weights; };
  meta = {
    description = "The compact model bundle of ticket-enrichment";
    license = lib.licenses.asl20;
  };
}
