# As much of nixpkgs as .flox/pkgs asks for: a package is what it was made of. A name that is not here is an error, so
# this also says which packages nixpkgs is known to have. tests/infrastructure/test_flox.py evaluates it.
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
      "boto3"
      "hatchling"
      "jmespath"
      "numpy"
      "onnxruntime"
      "prometheus-client"
      "pydantic"
      "pydantic-settings"
      "rich"
      "tokenizers"
      "typer"
      "typing-extensions"
    ]
    // {
      buildPythonPackage = made;
    };

  scope =
    packages
    // named [ "makeWrapper" ]
    // {
      inherit python313Packages;
      fetchPypi = attributes: attributes;
      lib = {
        importTOML = file: builtins.fromTOML (builtins.readFile file);
        licenses = {
          mit = "MIT";
          mit0 = "MIT-0";
        };
        fileset = {
          unions = files: files;
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
  install = package.installPhase or "";
  inherit (package) meta;
}) packages
