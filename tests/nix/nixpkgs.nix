# As much of nixpkgs as .flox/pkgs asks for: a package is what it was made of. A name that is not here is an error, so
# this also says which packages nixpkgs is known to have. tests/nix evaluates it.
{ expressions }: # the files, by name

let
  named =
    names:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = {
          inherit name;
          outPath = "/nix/store/${name}";
        };
      }) names
    );
  made =
    attributes:
    attributes
    // {
      name = attributes.pname;
      outPath = "/nix/store/${attributes.pname}";
    };

  python313Packages =
    named [
      "awslambdaric"
      "boto3"
      "botocore"
      "hatchling"
      "jmespath"
      "numpy"
      "onnx"
      "onnxruntime"
      "optimum-onnx"
      "phonenumbers"
      "prometheus-client"
      "pydantic"
      "python-stdnum"
      "rich"
      "scikit-learn"
      "scipy"
      "sentence-transformers"
      "sympy"
      "tokenizers"
      "torch"
      "transformers"
      "typer"
      "typing-extensions"
      "urllib3"
    ]
    // {
      buildPythonPackage =
        attributes:
        made attributes
        // {
          overridePythonAttrs = change: made (attributes // change attributes);
        };
    };

  scope =
    packages
    // named [
      "makeWrapper"
      "runtimeShell"
    ]
    // {
      inherit python313Packages;
      fetchPypi = attributes: attributes;
      fetchurl = attributes: attributes // { outPath = "/nix/store/${attributes.name}"; };
      lib = {
        inherit (builtins) attrNames;
        filterAttrs =
          keep: set:
          builtins.listToAttrs (
            builtins.filter (each: keep each.name each.value) (
              map (name: {
                inherit name;
                value = set.${name};
              }) (builtins.attrNames set)
            )
          );
        importTOML = file: builtins.fromTOML (builtins.readFile file);
        licenses = {
          asl20 = "Apache-2.0";
          mit = "MIT";
          mit0 = "MIT-0";
        };
        fileset = {
          # Not what a file set contains, but which paths it was made of.
          unions = files: builtins.concatMap (file: if builtins.isList file then file else [ file ]) files;
          difference = file: _: file;
          toSource =
            { root, fileset }:
            {
              root = toString root;
              files = map toString (if builtins.isList fileset then fileset else [ fileset ]);
            };
        };
      };
      python313.withPackages = choose: {
        packages = choose python313Packages;
        outPath = "/nix/store/python:${builtins.concatStringsSep ":" (map (found: found.name) (choose python313Packages))}";
      };
      stdenvNoCC.mkDerivation = made;
    };

  # As callPackage does: each argument by its name, from nixpkgs and from the other expressions.
  packages = builtins.mapAttrs (
    _: file:
    let
      expression = import file;
    in
    expression (builtins.mapAttrs (name: _: scope.${name}) (builtins.functionArgs expression))
  ) expressions;

  names = found: map (package: package.name) found;
in
builtins.mapAttrs (_: package: {
  inherit (package) pname version;
  source = package.src or null;
  build-system = names (package.build-system or [ ]);
  dependencies = names (package.dependencies or [ ]);
  extras = builtins.mapAttrs (_: names) (package.optional-dependencies or { });
  checks = (package.pythonImportsCheck or [ ]) ++ (if package.doInstallCheck or false then [ package.installCheckPhase ] else [ ]);
  build = package.buildPhase or "";
  install = package.installPhase or "";
  fetched = builtins.mapAttrs (_: file: { inherit (file) sha256 url; }) (package.passthru.weights or { });
  inherit (package) meta;
}) packages
